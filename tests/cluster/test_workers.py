"""What a worker says, refuses and gives up: code identity, requests to stop, runs that kill their worker."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from tiny_sweep import REPOSITORY, here, records, start, write_sweep

from harness import status
from harness.cluster.worker import Worker
from harness.core.errors import UserError
from harness.launch import main
from harness.records import code_version
from harness.records.files import check_disk, read_json, write_json
from harness.records.heartbeat import read_status
from harness.records.run_directory import RunDirectory
from harness.sweep import plan, queue
from harness.sweep.config import read_sweep

ONE_RUN = ("--set", "tune.trials=1", "--set", "final.seeds=[0]", "--set", "data.train_fraction=0.2")


def opened(folder: Path, **replaced: str) -> queue.OpenSweep:
    """The tiny sweep with its trials waiting, not launched."""
    sweep = queue.open_sweep(read_sweep(write_sweep(folder, 1, **replaced)), folder / "runs")
    plan.top_up(sweep)
    return sweep


# Code


def test_a_worker_with_other_code_says_so_in_its_status_and_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path, 1)
    command = [str(sweep), "--root", str(tmp_path / "runs"), "--cluster", "debug", *ONE_RUN]
    assert main(command) == 0
    kept = read_json(tmp_path / "runs/tiny/code.json")
    assert kept == {"code": code_version.code_version(), "changes": []}
    for record in records(tmp_path / "runs").values():
        assert record["provenance"]["git"] == code_version.code_version()
        assert "launched_with" not in record["provenance"]
    write_json(tmp_path / "runs/tiny/code.json", {"code": {"source": "0ther"}, "changes": []})
    capsys.readouterr()
    before = records(tmp_path / "runs").keys()
    assert main([*command, "--set", "final.seeds=[0, 1]"]) == 0
    assert "was launched with files 0ther" in capsys.readouterr().err
    added = [record for run, record in records(tmp_path / "runs").items() if run not in before]
    assert added
    assert all(record["provenance"]["launched_with"] == "files 0ther" for record in added)
    statuses = [read_json(path) for path in (tmp_path / "runs/tiny/workers").glob("*/status.json")]
    assert sorted(str(found["launched_with"]) for found in statuses) == ["None", "files 0ther"]


def test_other_code_can_be_refused_by_launch_and_worker(tmp_path: Path) -> None:
    sweep = opened(tmp_path)
    command = [str(tmp_path / "tiny.yaml"), "--root", str(tmp_path / "runs"), "--set", "changed_code=refuse"]
    write_json(sweep.folder / "code.json", {"code": {"source": "0ther"}, "changes": []})
    with pytest.raises(UserError, match="changed_code: refuse"):
        main([*command, "--set", "train.epochs=1", "--cluster", "debug"])
    write_json(sweep.folder / "sweep.json", {**read_json(sweep.folder / "sweep.json"), "changed_code": "refuse"})
    with pytest.raises(UserError, match=r"the code is .*; the sweep was launched with files 0ther"):
        Worker(str(sweep.folder), "w", keep_signals=True)()
    found = read_json(sweep.folder / "workers/w/status.json")
    assert found["state"] == "failed"
    assert "0ther" in found["reason"]
    assert not records(tmp_path / "runs")


# Ends


def test_a_worker_starts_nothing_once_the_sweep_is_cancelled(tmp_path: Path) -> None:
    sweep = opened(tmp_path)
    write_json(sweep.files.stop, {})
    assert Worker(str(sweep.folder), "w", keep_signals=True)() == 0
    assert read_json(sweep.folder / "workers/w/status.json")["state"] == "cancelled"
    assert plan.count(sweep)["tune"].running == 0
    assert not (sweep.folder / "runs").exists()


@pytest.mark.slow
def test_a_request_to_stop_reaches_workers_through_the_file_alone(tmp_path: Path) -> None:
    # As on a machine that the one who cancels cannot reach: no signal, only the shared folder.
    sweep, root = write_sweep(tmp_path, 3000), tmp_path / "runs"
    process = start(sweep, root, "--workers", "1")
    deadline = time.monotonic() + 60
    while not list(root.glob("tiny/runs/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    write_json(root / "tiny/stop.json", {})
    (worker,) = (root / "tiny/workers").iterdir()
    begun = time.monotonic()
    while (read_status(RunDirectory(worker)) or {})["state"] == "running" and time.monotonic() - begun < 20:
        time.sleep(0.1)
    assert read_json(worker / "status.json")["state"] == "cancelled"
    assert time.monotonic() - begun < 12
    assert "cancelled by harness.cancel" in process.communicate(timeout=20)[0]


STUCK = """
import sys, time
from pathlib import Path
from harness.cluster import signals, worker
from harness.records import heartbeat
signals.TERM_GRACE_S = 1.0
class Stuck(worker.Worker):
    def perform(self, sweep, claim, stop):
        with heartbeat.Heartbeat(sweep.files.run(claim.run_id)):
            print("stuck", flush=True)
            time.sleep(600)
Stuck(sys.argv[1], "w")()
"""


def test_a_worker_in_which_no_step_ends_gives_up_in_time(tmp_path: Path) -> None:
    sweep = opened(tmp_path)
    command = [sys.executable, "-c", STUCK, str(sweep.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert process.returncode == 143
    assert "giving up the work since the last checkpoint" in output
    assert read_json(sweep.folder / "workers/w/status.json")["state"] == "cancelled"
    (run,) = sweep.files.runs_named()
    assert [read_json(run / "status.json")[key] for key in ("state", "gave_up")] == ["cancelled", True]
    assert plan.count(queue.load_sweep(sweep.folder))["tune"].running == 1
    with sweep.files.lock("plan"):
        assert plan.reap(sweep) == 1
    assert plan.count(queue.load_sweep(sweep.folder))["tune"].running == 0


# Trials that cost workers


def test_a_run_that_keeps_killing_its_worker_fails_in_the_end(tmp_path: Path) -> None:
    sweep = opened(tmp_path, **{"workers: 2": "max_lost: 2"})
    (cell, *_) = sweep.cells
    for attempt in range(3):
        claim = queue.claim(sweep, f"dies {attempt}")
        while claim is not None and (claim.cell.id, claim.trial.number) != (cell.id, 0):
            claim = queue.claim(sweep, "other")
        assert claim is not None
        with sweep.files.lock("plan"):
            plan.reap(sweep)
    trial = sweep.studies[cell.id].get_trials(deepcopy=False)[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"].startswith("3 workers died during this run")
    assert trial.user_attrs["reason"].endswith("dies 2")


def test_a_requeued_worker_first_frees_what_it_held_before(tmp_path: Path) -> None:
    # Slurm requeues after a lost node under the same name: alive again, it would hold its old trial for ever.
    sweep = opened(tmp_path)
    claim = queue.claim(sweep, "w")
    other = queue.claim(sweep, "another")
    assert claim is not None
    assert other is not None
    with sweep.files.lock("plan"):
        assert plan.reap(sweep, of="w") == 1
    states = {(cell, trial.number): trial.state for cell in sweep.studies for trial in sweep.studies[cell].trials}
    assert states[claim.cell.id, claim.trial.number] == TrialState.WAITING
    assert states[other.cell.id, other.trial.number] == TrialState.RUNNING


# Logs and disks


def test_each_run_has_a_log_of_its_own(tmp_path: Path) -> None:
    ended, output = here(write_sweep(tmp_path, 3), tmp_path / "runs", "--cluster", "debug", *ONE_RUN)
    assert ended == 0, output
    for run, record in records(tmp_path / "runs").items():
        log = (tmp_path / "runs/tiny/runs" / run / "log.txt").read_text()
        assert log.startswith("--- 20")
        assert record["config"]["methods"][0]["name"] in log.splitlines()[0]
        assert log.count("epoch") == 3
        assert "epoch    1" not in output  # epochs are for the run's log, not for the launch's terminal


def test_a_disk_that_takes_no_more_is_an_error_of_its_own(tmp_path: Path) -> None:
    check_disk(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="nothing more can be written to"):
        check_disk(tmp_path / "not there")
    full = OSError(28, os.strerror(28))
    with pytest.raises(UserError, match="No space left on device"):
        check_disk(tmp_path, full)
    check_disk(tmp_path, ValueError("the run's own"))


# Launches that are refused


def test_a_refused_launch_leaves_no_mark(tmp_path: Path) -> None:
    # A database that is not there, corrected: the sweep has not got its name by the first attempt.
    sweep = write_sweep(tmp_path, 1)
    command = [str(sweep), "--root", str(tmp_path / "runs"), "--cluster", "debug", *ONE_RUN]
    pytest.importorskip("psycopg")
    with pytest.raises(UserError, match="does not answer"):
        main([*command, "--set", "storage=postgresql://me@127.0.0.1:1/absent"])
    assert not (tmp_path / "runs/tiny/sweep.json").exists()
    assert main(command) == 0
    # A growth that other code would carry out, refused: nothing has grown.
    write_json(tmp_path / "runs/tiny/code.json", {"code": {"source": "0ther"}, "changes": []})
    with pytest.raises(UserError, match="changed_code: refuse"):
        main([*command, "--set", "final.seeds=[0, 1]", "--set", "changed_code=refuse"])
    assert read_json(tmp_path / "runs/tiny/sweep.json")["final"]["seeds"] == [0]


def test_a_dry_run_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep(tmp_path, 1)
    command = [str(sweep), "--root", str(tmp_path / "runs"), *ONE_RUN]
    assert main([*command, "--cluster", "debug"]) == 0
    capsys.readouterr()
    for extra, ended, said in (
        ((), 0, "complete, nothing to do"),
        (("--set", "final.seeds=[0, 1]"), 0, "2 runs left, 0 workers on it"),
        (("--set", "train.epochs=7"), 2, "would be refused: .* differs in: base.train.epochs"),
    ):
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
        assert main([*command, *extra, "--dry-run"]) == ended
        assert re.search(said, capsys.readouterr().out)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}.keys() == before.keys()


def test_a_worker_that_dies_at_its_start_is_shown_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = opened(tmp_path)
    (sweep.folder / "logs").mkdir()
    log = sweep.folder / "logs" / "5_0_log.err"
    log.write_text("module: command not found\nslurmstepd: exit 3\n\n")
    sweep.files.worker("w").note_submitted(cluster="local", job_id="5", log=str(log))
    submitted = sweep.folder / "workers/w/submitted.json"
    os.utime(submitted, (time.time() - 100, time.time() - 100))
    assert status.main([str(sweep.folder)]) == 0
    printed = capsys.readouterr().out
    assert "w ended before its first run did: slurmstepd: exit 3" in printed
    assert str(log) in printed.replace("\n", "")
