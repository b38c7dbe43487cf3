"""`python -m harness.bench METHOD.py --so-far`: what an unfinished bench compares."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from own_components import edit, forget, write_study

from analysis import render
from harness import bench
from harness.core import outside, registry
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
    outside.keep(own / "components", plain(spec))
    return own, arguments


def _draw_one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of all."""
    chosen = render.chosen_figures
    monkeypatch.setattr(render, "chosen_figures", lambda names: chosen(names or ["accuracy_over_bits"]))


def test_what_is_finished_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _draw_one_figure(monkeypatch)
    own, arguments = _half_done(tmp_path, monkeypatch)
    assert bench.main([*arguments, "--so-far"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("left: 12 of 12 trials, 4 of 9 finals; the same command without --so-far")
    assert "pull,model=mlp5-128,target_bit=3: seed 2: final not finished" in said
    with (own / "figures/against-mlp5-digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["at"], row["method"]) for row in rows} == {("2", "pull@2")}
    with (own / "figures/comparisons.csv").open() as file:
        others = list(csv.DictReader(file))
    assert {row["method"] for row in others} > {"lsq@2", "kure@2"}
    assert "pull@2" not in {row["method"] for row in others}, "one comparison has one p"
    where = "Comparisons of pull with others: against-mlp5-digits.md."
    assert (own / "figures/comparisons.md").read_text().rstrip().endswith(where)
    (ranked,) = [line for line in said.splitlines() if line.split()[1:2] == ["pull"]]
    assert ranked.split()[0].isdigit(), "ranked, by the target that is finished"
    assert not (own / "study.log").exists(), "nothing is started"
    (own / "runs" / json.loads((own / "cells.json").read_text())["cells"][0]["finals"]["0"] / "record.json").unlink()
    with pytest.raises(bench.UserError, match=r"no cell of bench-.* \(4 of 6 are there\); left: .* 5 of 9 finals"):
        bench.main([*arguments, "--so-far"])
    shutil.rmtree(own)
    with pytest.raises(bench.UserError, match=r"nothing to compare yet: .* without --so-far starts it"):
        bench.main([*arguments, "--so-far"])


def test_benches_that_stand_beside_it_are_named_with_how_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, arguments = _half_done(tmp_path, monkeypatch)
    search = ["--search", "pull.strength={low: 0.1, high: 10, log: true}"]
    rate = r"train\.learning_rate in \[0\.001, 0\.01\] \(log\)"
    there = rf"without --so-far starts it; there is runs/{own.name} \(it searches {rate}\)$"
    with pytest.raises(bench.UserError, match=there):
        bench.main([*arguments, *search, "--so-far"])
    with pytest.raises(bench.UserError, match=rf"there is runs/{own.name} \(without --on\)$"):
        bench.main([*arguments, "--on", "lsq", "--so-far"])
    edit(tmp_path / "methods/pull.py", "\n", "\n\n")
    forget(monkeypatch)
    with pytest.raises(bench.UserError, match=rf"\(the method's file was another, it searches {rate}\)$"):
        bench.main([*arguments, *search, "--so-far"])
    other = json.loads((own / "sweep.json").read_text())
    other["cells"][0]["methods"] = [{"name": "lsq"}]
    (own / "sweep.json").write_text(json.dumps(other))
    with pytest.raises(bench.UserError, match=r"without --so-far starts it$"):
        bench.main([*arguments, *search, "--so-far"])


def test_other_records_share_the_runs_and_have_a_comparison_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _draw_one_figure(monkeypatch)
    own, arguments = _half_done(tmp_path, monkeypatch)
    fewer = archive.unpack(bench._committed(), tmp_path / "fewer").rename(tmp_path / "fewer/two")
    cells = json.loads((fewer / "cells.json").read_text())
    cells["cells"] = [cell for cell in cells["cells"] if cell["methods"] in (["none"], ["ste"])]
    (fewer / "cells.json").write_text(json.dumps(cells))
    assert bench.main([*arguments, "--so-far"]) == 0
    first = (own / "figures/against-mlp5-digits.csv").read_bytes()
    assert bench.main([*arguments, "--so-far", "--against", str(fewer)]) == 0
    assert (own / "figures/against-mlp5-digits.csv").read_bytes() == first, "the other comparison stays"
    with (own / "figures-two/against-mlp5-digits.csv").open() as file:
        rows = {row["against"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"float", "ste@2"}
    both = {row["against"]: row for row in csv.DictReader(first.decode().splitlines())}
    for name, row in rows.items():
        assert row["difference"] == both[name]["difference"]
    edit(fewer / "sweep.json", '"seed": 1000', '"seed": 1001')
    capsys.readouterr()
    assert bench.main([*arguments, "--so-far", "--against", str(fewer)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "; the same command without --so-far would be refused: " in last
    assert "differs in: tune.seed" in last
