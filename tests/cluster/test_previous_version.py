"""A small sweep that commit 97db3dc carried out, in `previous_version/`: this version knows, continues and draws it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis import make_figures
from harness import evaluate, launch, status
from harness.records.files import read_json
from harness.training.config import complete

HERE = Path(__file__).parent / "previous_version"
FILE = HERE / "small.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(HERE, tmp_path / "root")
    return tmp_path / "root"


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_json(path) for path in sorted(root.glob("small/runs/*/record.json"))}


def start(root: Path, *more: str) -> int:
    return launch.main([str(FILE), "--root", str(root), "--cluster", "debug", *more])


def test_its_runs_have_the_same_ids(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root, "--dry-run", "--runs") == 0
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " trial " in line or " seed " in line}
    assert shown == set(records(HERE))


def test_it_is_complete(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert status.main([str(FILE), "--root", str(root)]) == 0
    assert "complete" in capsys.readouterr().out
    assert records(root) == records(HERE)


@pytest.mark.slow
def test_it_grows_by_a_trial_and_a_seed(root: Path) -> None:
    assert start(root, "--set", "tune.trials=3", "--set", "final.seeds=[0,1]") == 0
    before, after = records(HERE), records(root)
    assert {name: after[name] for name in before} == before
    added = [record for name, record in after.items() if name not in before]
    # Two cells: a trial and a seed each; where the new trial is the best so far, seed 0 runs again with it.
    assert sorted(record["phase"] for record in added)[-2:] == ["tune", "tune"]
    assert {record["config"]["seed"] for record in added if record["phase"] == "final"} >= {1}
    cells = read_json(root / "small/cells.json")["cells"]
    assert [sorted(cell["finals"]) for cell in cells] == [["0", "1"]] * 2
    assert {run for cell in cells for run in cell["finals"].values()} <= set(after)


def test_a_run_whose_record_is_gone_gives_the_same_record(root: Path) -> None:
    """On this machine's arithmetic: all but the code, the clock and the machine, and accuracy to within one image."""
    name = next(name for name, record in records(HERE).items() if record["phase"] == "final")
    shutil.rmtree(root / "small/runs" / name)
    (root / "small/study.log").unlink()  # the queue, too, is rebuilt from the records
    assert start(root) == 0
    before, after = records(HERE)[name], records(root)[name]
    assert after["config"] == complete(before["config"]).model_dump(mode="json"), (
        "settings added since at their defaults"
    )
    for old, new in zip(before["rows"], after["rows"], strict=True):
        assert {key: new[key] for key in ("split", "deploy", "scale", "bits", "n")} == {
            key: old[key] for key in ("split", "deploy", "scale", "bits", "n")
        }
        # Two epochs in fp32: CPUs differ in the last digits of their sums, which decide single images at most.
        assert abs(new["accuracy"] - old["accuracy"]) <= 2 / old["n"]


def test_rows_are_added_from_its_weights(root: Path) -> None:
    assert evaluate.main([str(root / "small"), "--bits", "5"]) == 0
    finals = [record for record in records(root).values() if record["phase"] == "final"]
    assert [sum(row["bits"] == 5 for row in record["rows"]) for record in finals] == [2, 2]


def test_it_is_drawn(root: Path) -> None:
    assert make_figures.main(["--root", str(root), "--sweep", "small", "--figure", "accuracy_over_bits"]) == 0
    assert (root / "small/figures/accuracy_over_bits.csv").read_text().count("\n") > 4
