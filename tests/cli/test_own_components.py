"""The study of sweeps/components.md, in an empty folder outside of the repository: launched, drawn and exported."""

import json
import os
from pathlib import Path

import pytest
from commands import run_here
from own_components import SHORT, edit, forget, write_study

from harness.records.archive import pack, unpack

SETS = [word for each in SHORT for word in ("--set", each)]


def ended(module: str, *arguments: object, cwd: Path) -> str:
    """What a command prints that ends well."""
    answer = run_here(module, *arguments, cwd=cwd)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_the_files_of_the_page_are_as_short_as_it_says(tmp_path: Path) -> None:
    write_study(tmp_path)
    lines = {path.name: len(path.read_text().splitlines()) for path in tmp_path.glob("*/*.py")}
    assert lines["small_cnn.py"] <= 15
    assert lines["rings.py"] <= 25
    assert sum(bool(line.strip()) for line in (tmp_path / "methods/pull.py").read_text().splitlines()) <= 20


def test_a_run_by_hand_keeps_them_and_can_be_carried_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "{methods: methods/pull.py, target_bit: 3, data: {name: data/rings.py, count: 60}, model: {name: "
        "nets/small_cnn.py, width: 2}, train: {epochs: 1, precision: fp32}, deploy: {bits: [2], scale: recalibrate}, "
        'runtime: {device: cpu, wandb: "off", threads: 1}}'
    )
    assert "record: " in ended("harness.run", "run.yaml", "--dir", "one", cwd=tmp_path)
    record = json.loads((tmp_path / "one/record.json").read_text())
    assert len(list((tmp_path / "one/components").iterdir())) == 3
    said = ended("harness.export", "one", "--bits", "w2", "--to", "out", cwd=tmp_path).splitlines()
    components = f"{Path('out/components')}{os.sep}: copies of your own files that the run names; "
    assert said[1] == f"{components}harness.load_packed(path) needs them beside the file"
    assert len(list((tmp_path / "out/components").iterdir())) == 3
    assert "components" not in ended("harness.export", "one", "--bits", "w2", cwd=tmp_path)
    for name in ("nets/small_cnn.py", "data/rings.py", "methods/pull.py"):
        (tmp_path / name).unlink()
    forget(monkeypatch)
    assert "record: " in ended("harness.run", "one/config.json", "--dir", "two", cwd=tmp_path)
    again = json.loads((tmp_path / "two/record.json").read_text())
    assert (again["run_id"], again["rows"]) == (record["run_id"], record["rows"])


@pytest.mark.slow
def test_it_is_launched_drawn_exported_repeated_packed_and_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path)
    launch = ("harness.launch", "rings.yaml", *SETS, "--cluster", "debug")
    assert "pull,target_bit=3" in ended(*launch, cwd=tmp_path)
    edit(tmp_path / "nets/small_cnn.py", "nn.ReLU()", "nn.GELU()")
    refused = run_here(*launch, cwd=tmp_path)
    assert refused.returncode == 2
    assert "nets/small_cnn.py was edited since the launch" in refused.stderr
    before = ended(*launch, "--root", "other", "--dry-run", "--runs", cwd=tmp_path)
    for name in ("nets/small_cnn.py", "data/rings.py", "methods/pull.py"):
        (tmp_path / name).unlink()
    forget(monkeypatch)  # from now on the kept copies are all there is
    sweep = tmp_path / "runs/rings"
    cells = json.loads((sweep / "cells.json").read_text())["cells"]
    (pulled,) = [cell["finals"]["0"] for cell in cells if cell["id"] == "pull,target_bit=3"]
    assert pulled not in before
    assert "6 of 6 runs done" in ended("harness.status", sweep, cwd=tmp_path)
    ended("analysis.make_figures", "--root", "runs", "--figure", "accuracy_over_bits", cwd=tmp_path)
    (drawn,) = sweep.rglob("accuracy_over_bits.csv")
    assert "\npull@3,pull,3," in drawn.read_text()
    assert "1 row added" not in ended("harness.evaluate", sweep / "runs" / pulled, "--bits", "5", cwd=tmp_path)
    said = ended("harness.export", pulled, "--bits", "w3a8", "--to", "out", cwd=tmp_path)
    assert "% in the record" in said
    assert len(list((tmp_path / "out/components").iterdir())) == 3
    archive = pack(sweep, tmp_path / "archives")
    assert unpack(archive, tmp_path / "again") == tmp_path / "again/rings"
    forget(monkeypatch)
    repeated = ("harness.repeat", pulled[:8], "--root", "again", "--dir", "repeated")
    assert "rows are the same" in ended(*repeated, cwd=tmp_path)


def test_other_commands_take_a_file_too(tmp_path: Path) -> None:
    write_study(tmp_path)
    assert "method pull\n" in (said := ended("harness.config", "methods/pull.py", cwd=tmp_path))
    assert "strength: float; default 10; 0 <= x" in said
    assert "default" in ended("harness.config", "nets/small_cnn.py", cwd=tmp_path)
    said = ended("harness.methods", "methods/pull.py", "--markdown", cwd=tmp_path)
    assert "| `pull` | Pull to the grid | regularizer | weights | calibrated | `strength=10.0` | An example" in said
    refused = run_here("harness.evaluate", tmp_path, "--deploy", "methods/pull.py", cwd=tmp_path)
    assert refused.returncode == 2
    assert "method 'pull' has no deployment of its own" in refused.stderr
