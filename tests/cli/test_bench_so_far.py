"""`python -m harness.bench METHOD.py --so-far`: what an unfinished bench compares."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from own_components import forget, write_study

from analysis import render
from harness import bench
from harness.core import registry
from harness.records import archive
from harness.sweep.config import plain


def _half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A bench of which one of two targets is finished, made of committed records; and the command's arguments."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    forget(monkeypatch)
    arguments = ["methods/pull.py", "--model", "mlp5"]
    options = bench._parser().parse_args(arguments)
    spec = bench.suite_of(bench._committed(), options)
    own, records = tmp_path / "runs" / spec.name, archive.unpack(bench._committed(), tmp_path / "all")
    name = registry.check("method", "methods/pull.py")
    content = json.loads((records / "cells.json").read_text())
    cells = [cell for cell in content["cells"] if cell["id"].startswith("lsq,model=mlp5") and "bit=4" not in cell["id"]]
    assert len(cells) == 2
    for run in (run for cell in cells for run in cell["finals"].values()):
        shutil.copytree(records / "runs" / run, own / "runs" / run)
        path = own / "runs" / run / "record.json"
        record = json.loads(path.read_text())
        record["config"]["methods"][0]["name"] = name
        path.write_text(json.dumps(record))
    (own / "runs" / cells[1]["finals"]["2"] / "record.json").unlink()
    for cell in cells:
        cell |= {"id": cell["id"].replace("lsq", "pull", 1), "methods": ["pull"]}
    (own / "cells.json").write_text(json.dumps({**content, "cells": cells}))
    (own / "sweep.json").write_text(json.dumps(plain(spec)))
    return own, arguments


def test_what_is_finished_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = render.chosen_figures
    monkeypatch.setattr(render, "chosen_figures", lambda names: chosen(names or ["accuracy_over_bits"]))  # for all
    own, arguments = _half_done(tmp_path, monkeypatch)
    assert bench.main([*arguments, "--so-far"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("left: 12 of 12 trials, 4 of 9 finals; the same command without --so-far")
    assert "pull,model=mlp5-128,target_bit=3: seed 2: final not finished" in said
    with (own / "figures/against-mlp5-digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["at"], row["method"]) for row in rows} == {("2", "pull@2")}
    (ranked,) = [line for line in said.splitlines() if line.split()[1:2] == ["pull"]]
    assert ranked.split()[0].isdigit(), "ranked, by the target that is finished"
    assert not (own / "study.log").exists(), "nothing is started"
    (own / "runs" / json.loads((own / "cells.json").read_text())["cells"][0]["finals"]["0"] / "record.json").unlink()
    with pytest.raises(bench.UserError, match=r"no cell of bench-.* \(4 of 6 are there\); left: .* 5 of 9 finals"):
        bench.main([*arguments, "--so-far"])
    shutil.rmtree(own)
    with pytest.raises(bench.UserError, match=r"nothing to compare yet: .* without --so-far starts it"):
        bench.main([*arguments, "--so-far"])
