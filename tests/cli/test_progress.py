"""What a launch prints while it works: that it checks networks, and a line only when something has changed."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cli_sweep import BASE, Cli, edited
from optuna.trial import FrozenTrial
from studies_common import claims, open_sweep, record, tell

from harness import launch, logs, status
from harness.cli import estimate, launching, progress
from harness.cli.status_report import status_report, time_left_s
from harness.cluster import slots
from harness.cluster.worker_info import WorkerInfo
from harness.core.errors import UserError
from harness.core.wording import counted
from harness.records.files import write_json
from harness.records.heartbeat import process_identity
from harness.sweep import plan, trials
from harness.sweep.queue import OpenSweep


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenSweep:
    """Two cells of three trials and two seeds: a trial is done, which took a minute, and two run."""
    monkeypatch.setattr(trials, "mean_seconds", lambda found: 60.0 if any(t.values for t in found) else None)
    monkeypatch.setattr("harness.cli.status_report.mean_seconds", trials.mean_seconds)
    opened = open_sweep(tmp_path)
    plan.top_up(opened)
    held = claims(opened)
    tell(opened, held[0], record(0.5))
    for claim in held[3:]:
        opened.storage.set_trial_state_values(claim.trial._trial_id, trials.TrialState.WAITING)
    return opened


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_a_line_comes_when_something_has_changed_or_after_some_minutes(
    sweep: OpenSweep, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.Display() as display:
        for second in range(0, 700, 5):
            clock.now = 100.0 + second
            display.show(sweep, plan.count(sweep))
        printed = capsys.readouterr().out.splitlines()
        line = "tuning 1/6 (2 running); final runs 0/4 (none running); 4.5 min left"
        assert printed == [line, line, line], "at once, after 305 s and after 610 s"
        tell(sweep, claims(sweep)[0], record(0.9))
        display.show(sweep, plan.count(sweep))
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 1
        assert "tuning 2/6 (" in printed[0]
        assert "best" not in printed[0], "which would be of several objectives"


def test_the_time_left_is_that_of_status(sweep: OpenSweep, tmp_path: Path) -> None:
    assert time_left_s(sweep, 2) == 9 * 60 / 2
    assert time_left_s(sweep, 0) is None
    assert status_report(sweep)["eta_s"] is None, "nobody works"
    assert time_left_s(open_sweep(tmp_path / "other"), 2) is None, "no run says how long one takes"
    assert estimate.shown(270) == "4.5 min"


@pytest.mark.parametrize("options", [("--dry-run",), ()])
def test_it_says_that_networks_are_checked(
    cli: Cli, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "_start", lambda *arguments: 0)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr("harness.cli.builds._check_build", lambda *arguments: [])
    content = edited({"cells/0/methods": "ste", "cells/1": {**BASE["cells"][0], "methods": "lsq"}})
    arguments = [str(cli.file(content)), "--root", str(cli.root), *options]
    assert launch.main(arguments) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "checking 2 networks"
    assert "checking" not in said.out
    if not options:
        assert launch.main(arguments) == 0
        again = f"{cli.root / 'small'}: launched before, which checked its networks; reading its queue"
        assert capsys.readouterr().err.splitlines()[0] == again


@pytest.mark.parametrize(
    ("load", "options", "said"),
    [
        (8.34, (), "several times where a run has more than one thread; --set runtime.threads=1 helps"),
        (8.34, ("--dry-run", "--estimate"), "load 8.3 on 2 cores: other work slows runs, by several times"),
        (8.34, ("--workers", "2"), "than one thread\n"),
        (8.34, ("--set", "runtime.threads=1"), "than one thread\n"),
        (3.0, (), None),
        (None, (), None),
        (8.34, ("--dry-run",), None),
    ],
)
def test_a_busy_machine_is_noted_once(
    cli: Cli,
    load: float | None,
    options: tuple[str, ...],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launching, "_start", lambda *arguments: 0)
    monkeypatch.setattr(launching, "cores", lambda: 2)
    monkeypatch.setattr(slots, "cores", lambda: 2)
    monkeypatch.setattr(estimate, "show", lambda *arguments: None)
    monkeypatch.setattr("harness.cli.builds._check_build", lambda *arguments: [])
    if load is None:  # as on systems without it
        monkeypatch.delattr(os, "getloadavg")
    else:
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    workers = () if "--workers" in options else ("--workers", "1")
    assert launch.main([str(cli.file(edited({}))), "--root", str(cli.root), *workers, *options]) == 0
    err = capsys.readouterr().err
    assert err.count("note: load") == (said is not None)
    assert (said or "") in err


class Interrupted:
    """A pool of workers, during whose launch Ctrl-C is pressed; so many stop in time, and these do not."""

    def __init__(self, ended: int, running: list[WorkerInfo]) -> None:
        self.stop = lambda: (ended, running)

    def replace_lost(self) -> None:
        raise KeyboardInterrupt


SLOW = WorkerInfo("w", {"state": "running", **process_identity(), "pid": 4711}, {}, 0.0)
STARTING = WorkerInfo("v", {}, {"cluster": "local", "job_id": "4712", "by": {"host": "node9"}}, 0.0)


@pytest.mark.parametrize(
    ("ended", "running", "said"),
    [
        (2, [], ["2 workers stopped; 9 runs are left; launch it again to go on"]),
        (
            1,
            [SLOW],
            [
                "still stopping: pid 4711, after its current step",
                "1 worker stopped; 9 runs are left; launch it again to go on",
            ],
        ),
        (
            0,
            [SLOW, STARTING],
            [
                "still stopping: pid 4711, after its current step",
                "still stopping: pid 4712 on node9, after its current step",
                "9 runs are left; launch it again to go on",
            ],
        ),
        (0, [], ["no worker was running; 9 runs are left; launch it again to go on"]),
    ],
)
def test_an_interrupted_launch_ends_with_what_is_left(
    sweep: OpenSweep, capsys: pytest.CaptureFixture[str], ended: int, running: list[WorkerInfo], said: list[str]
) -> None:
    assert launching._follow(sweep, Interrupted(ended, running), "local") == 130  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "interrupted: workers write their checkpoints and stop; the same command continues",
        *said,
    ]
    assert plan.count(sweep)["tune"].running == 0, "their trials wait again"


def test_a_run_whose_process_is_gone_is_lost(sweep: OpenSweep, capsys: pytest.CaptureFixture[str]) -> None:
    files = sweep.files.run("r0")
    files.path.mkdir(parents=True)
    status = {"state": "running", **process_identity()}
    for pid, state in ((status["pid"], "running"), (2**22 + 1, "lost")):
        write_json(files.status, {**status, "pid": pid})
        write_json(files.trials, [{"phase": "tune", "cell": "c", "trial": 0}])
        files.log.write_text("said\n")
        assert logs.main([str(sweep.folder), "--root", str(sweep.folder.parent)]) == 0
        assert capsys.readouterr().out == f"r0  tune   c  trial 0    {state}\n"
        assert logs.main(["r0", "--root", str(sweep.folder.parent)]) == 0
        assert f"--- r0: {state}, attempt" in capsys.readouterr().out


def test_status_of_a_sweep_that_is_still_checked_says_so(cli: Cli) -> None:
    with pytest.raises(UserError, match=r"see --root \(a launch that still checks its networks has written nothing"):
        status.main([str(cli.file(BASE)), "--root", str(cli.root)])


def test_one_of_a_thing_is_no_plural(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert [counted(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    edits = {"cells/0/grid": {"target_bit": [2]}, "tune/trials": 1}
    launch.main([str(cli.file(edited(edits))), "--root", str(cli.root), "--dry-run", "--runs"])
    said = capsys.readouterr().out
    assert "  ste,target_bit=2  1 trial, searching train.learning_rate in" in said
    assert "; 1 seed\n" in said
    assert "1 cell, 1 trial, 1 final: 2 runs\n" in said


def took(worker: str, start_s: int, seconds: int) -> FrozenTrial:
    """A complete trial."""
    start = datetime(2026, 1, 1) + timedelta(seconds=start_s)
    end = start + timedelta(seconds=seconds)
    return FrozenTrial(0, trials.TrialState.COMPLETE, 0.5, start, end, {}, {}, {"worker": worker}, {}, {}, 0)


def test_a_workers_first_run_does_not_count_where_there_are_others() -> None:
    """It waits for imports, for caches of data, for what is compiled once."""
    first = [took("b", 1, 60), took("a", 0, 50)]
    assert trials.mean_seconds(trials.without_first_ones(first)) == 55
    later = [took("a", 50, 10), took("c", 70, 90), took("b", 61, 20)]
    assert trials.mean_seconds(trials.without_first_ones([*later, *first])) == 15
