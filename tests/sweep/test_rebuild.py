"""The queue is lost, the records are not: a launch rebuilds it, and repeats nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import RUNS, records, write_sweep

from harness.cancel import main as cancel
from harness.core.errors import UserError
from harness.launch import main
from harness.status import main as status
from harness.sweep.samplers import distribution
from harness.sweep.search_space import Choices, Range

SHORT = ("--cluster", "debug", "--set", "data.train_fraction=0.2", "--set", "runtime.threads=1")
#: TPE draws trial k from those before it: only the finished trials themselves bring its next draws back.
TPE = {"sampler: random": "sampler: {name: tpe, n_startup_trials: 1}"}


def chosen(root: Path) -> dict[str, Any]:
    cells = json.loads((root / "tiny/cells.json").read_text())["cells"]
    return {cell["id"]: (cell["chosen"]["params"], cell["chosen"]["value"], cell["finals"]) for cell in cells}


def stamps(root: Path) -> dict[str, int]:
    return {run: (root / f"tiny/runs/{run}/record.json").stat().st_mtime_ns for run in records(root)}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sweep_whose_journal_is_gone(tmp_path: Path, sampler: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, root = write_sweep(tmp_path, 1, **(TPE if sampler == "tpe" else {})), tmp_path / "runs"
    command = [str(sweep), "--root", str(root), *SHORT]
    assert main(command) == 0
    before, then = chosen(root), stamps(root)
    assert len(then) == RUNS
    for name in ("study.log", "cells.json"):
        (root / "tiny" / name).unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert ("rebuilt from the records" in capsys.readouterr().out) == (sampler == "tpe")
    assert chosen(root) == before
    assert stamps(root) == then
    assert main([*command, "--set", "tune.trials=3"]) == 0  # it still grows
    assert len(records(root)) >= RUNS + 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("queue", ["gone", "empty"])
def test_what_a_launch_would_find_is_counted_and_no_queue_is_written(
    tmp_path: Path, sampler: str, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, root = write_sweep(tmp_path, 1, **(TPE if sampler == "tpe" else {})), tmp_path / "runs"
    command = [str(sweep), "--root", str(root), *SHORT]
    assert main(command) == 0
    journal = root / "tiny/study.log"
    journal.unlink()
    if queue == "empty":
        journal.touch()
    final, trial = (next(run for run in phases(root) if phases(root)[run] == which) for which in ("final", "tune"))
    lines: dict[str, list[str]] = {}
    for done, lost in ((RUNS, final), (RUNS - 1, trial), (RUNS - 2, None)):
        capsys.readouterr()
        assert main([*command, "--dry-run"]) == 0
        lines["launch"] = capsys.readouterr().out.splitlines()[-2:]
        assert status([str(sweep), "--root", str(root)]) == 0
        lines["status"] = capsys.readouterr().out.splitlines()
        left = f"{RUNS - done} run{'s' if RUNS - done > 1 else ''} left, 0 workers on it"
        assert lines["launch"][0].endswith(left if done < RUNS else "complete, nothing to do")
        state = "complete" if done == RUNS else "stopped"
        assert lines["status"][0].startswith(f"tiny: {state}, {done} of {RUNS} runs done")
        for last in lines.values():
            assert last[-1] == "the queue is not there; a launch rebuilds it from the records"
        if lost:
            shutil.rmtree(root / "tiny/runs" / lost)
    cancel([str(sweep), "--root", str(root)])
    assert "2 runs are left" in capsys.readouterr().out
    assert journal.exists() == (queue == "empty")
    assert not journal.exists() or not journal.stat().st_size


def phases(root: Path) -> dict[str, str]:
    return {run: record["phase"] for run, record in records(root).items()}


def test_a_trial_that_was_repeated_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, root = write_sweep(tmp_path, 1, **TPE), tmp_path / "runs"
    command = [str(sweep), "--root", str(root), *SHORT]
    assert main(command) == 0
    path = next(root / f"tiny/runs/{run}/trials.json" for run in phases(root) if phases(root)[run] == "tune")
    (entry,) = json.loads(path.read_text())
    path.write_text(json.dumps([entry, {**entry, "trial": 2}]))  # as after harness.retry
    (root / "tiny/study.log").unlink()
    assert main([*command, "--dry-run"]) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert main(command) == 0  # takes up the finals, which have their records
    capsys.readouterr()
    assert main(command) == 0
    assert "complete, nothing to do" in capsys.readouterr().out


def test_a_damaged_journal_is_refused_with_the_way_out(tmp_path: Path) -> None:
    sweep, root = write_sweep(tmp_path, 1, **TPE), tmp_path / "runs"
    command = [str(sweep), "--root", str(root), *SHORT]
    assert main(command) == 0
    journal, before, then = root / "tiny/study.log", chosen(root), stamps(root)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:9], b"\0\0\0 not a line\n", *lines[10:]]))
    with pytest.raises(UserError, match=r"study\.log is damaged .* move it away and launch again"):
        main(command)
    journal.rename(tmp_path / "damaged.log")
    assert main(command) == 0
    assert (chosen(root), stamps(root)) == (before, then)


@pytest.mark.parametrize(
    ("dimension", "text"),
    [
        (Choices(choices=(2, 3)), "CategoricalDistribution(choices=(2, 3))"),
        (Range(low=1, high=9, kind="int", step=2), "IntDistribution(high=9, log=False, low=1, step=2)"),
        (Range(low=0.1, high=1.0, log=True), "FloatDistribution(high=1.0, log=True, low=0.1, step=None)"),
    ],
)
def test_distributions_are_those_of_a_claim(dimension: Choices | Range, text: str) -> None:
    assert repr(distribution(dimension)) == text
