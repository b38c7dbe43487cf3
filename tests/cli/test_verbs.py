"""status, cancel, retry, logs: on a real queue; nothing is run, records are made up."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import run_here
from rich.console import Console
from studies_common import RAW, THREE, TWO, claims, finish_tuning, open_sweep, record, states, tell

from harness import __main__ as commands
from harness import cancel, logs, retry, status
from harness.cli.status_report import status_report
from harness.cluster.signals import StopRequest
from harness.cluster.worker import Worker
from harness.core.errors import UserError
from harness.records import code_version
from harness.records.files import write_json
from harness.records.heartbeat import Heartbeat, process_identity
from harness.records.run_directory import RunDirectory
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig
from harness.sweep.queue import OpenSweep
from harness.training.config import complete
from harness.training.run import epoch_line


def by_cell(sweep: OpenSweep) -> dict[str, dict[str, Any]]:
    return {cell["id"]: cell for cell in status_report(sweep)["cells"]}


def fail_one(sweep: OpenSweep, reason: str = "ValueError: no") -> queue.Claim:
    """Claim a trial and let it fail for good."""
    claim = queue.claim(sweep, "w")
    assert claim is not None
    assert claim.run_id
    queue.tell_failed(sweep, claim, reason, retry=False)
    return claim


# status


def test_status_counts_each_cell(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    with Heartbeat(RunDirectory(sweep.folder / "workers" / "w"), "job_7") as beat:
        first, second, third = (queue.claim(sweep, "w") for _ in range(3))
        assert first
        assert second
        assert third
        tell(sweep, first, record(0.7))
        queue.tell(third, None)
        beat.note(gpu="2", slot="gpu2.0", run=second.run_id)
        found = status_report(sweep)
        beat.state = "done"
    cells = {cell["id"]: cell for cell in found["cells"]}
    two, three = cells[TWO], cells[THREE]
    keys = ("total", "waiting", "running", "done", "failed", "pruned")
    assert [two[key] for key in keys] == [5, 3, 0, 1, 0, 1]
    assert [three[key] for key in keys] == [5, 4, 1, 0, 0, 0]
    assert (two["best"]["trial"], two["best"]["values"]) == (0, [0.7])
    assert three["best"] is None
    assert (found["state"], found["left"], found["runs"]) == ("running", 8, 10)
    (worker,) = found["workers"]
    assert (worker["state"], worker["gpu"], worker["run"]) == ("running", "2", second.run_id)
    # One run took the mean time; one worker has eight more to do.
    assert found["eta_s"] == pytest.approx(8 * two["mean_run_s"])


def report(**fields: Any) -> dict[str, Any]:
    """A report of one worker on a long name, as `status` shows it."""
    worker = dict.fromkeys(("why", "host", "job_id", "gpu", "launched_with", "reason", "last_line", "log"))
    worker |= {"name": "19ac8d2b6f1-1a2b3c-0", "state": "running", "cluster": "local", "pid": 1234567, "slot": "cpu0"}
    worker |= {
        "since_last_launch": True,
        "run": "32bb5f258e16",
        "finished": 12,
        "heartbeat_age_s": 1.0,
        "epoch": None,
        "epochs": 40,
    }
    empty: dict[str, Any] = {"cells": [], "failures": [], "without_mirror": {}, "queue_is_there": True}
    found = {"sweep": "s", "state": "running", "runs": 3, "left": 1, "eta_s": None, **empty}
    return {**found, "workers": [{**worker, "epoch_s": None, **fields}]}


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize(
    ("fields", "cells"),
    [
        ({"epoch": 12, "epoch_s": 0.8349}, ["32bb5f258e16", "12/40", "0.835", "12"]),
        ({"epoch": 1}, ["32bb5f258e16", "1/40", "-", "12"]),
        ({}, ["32bb5f258e16", "0/40", "-", "12"]),
        ({"run": None, "epoch": 40, "epoch_s": 2.0}, ["-", "-", "-", "12"]),
    ],
    ids=["under way", "first epoch over", "just begun", "between runs"],
)
def test_status_shows_epoch_and_rate_of_a_running_run(fields: Any, cells: list[str], columns: int) -> None:
    console = Console(width=columns)
    with console.capture() as captured:
        console.print(status.shown(report(**fields), columns >= status.WIDE))
    (row,) = [line for line in captured.get().splitlines() if "19ac8d2b6f1-1a2b3c-0" in line]
    shown = [cell.strip() for cell in row.split("│")[1:-1]]
    done = shown.index("12")
    assert shown[done - 3 : done + 1] == cells


def test_status_lists_who_is_there_and_who_ended_early_since_the_last_launch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = open_sweep(tmp_path)
    now_s = time.time()
    ended = {  # name of the worker: its state, and when it last wrote it
        f"{int(1000 * (now_s - 9000)):x}-1-0": ("cancelled", now_s - 8000),
        f"{int(1000 * (now_s - 9000)):x}-1-1": ("failed", now_s - 8000),
        f"{int(1000 * (now_s - 9000)):x}-1-2": ("failed", now_s - 50),  # worked on beside the last launch's
        f"{int(1000 * (now_s - 100)):x}-2-0": ("done", now_s - 20),
        f"{int(1000 * (now_s - 100)):x}-2-1": ("cancelled", now_s - 20),
    }
    for name, (state, at) in ended.items():
        files = sweep.files.worker(name)
        files.note_submitted(cluster="local", job_id="5", log="none")
        write_json(files.status, {"state": state, **process_identity()})
        os.utime(files.status, (at, at))
    assert status.main([str(sweep.folder)]) == 0
    printed = capsys.readouterr().out
    assert [name in printed for name in ended] == [False, False, True, False, True]
    assert "3 further workers ended: 1 cancelled, 1 failed, 1 done" in printed
    assert [worker["name"] for worker in status_report(sweep)["workers"]] == sorted(ended)


def test_a_worker_notes_how_far_its_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"data": {"name": "digits", "train_fraction": 0.1}, "train": {"epochs": 3}, "runtime": {"wandb": "off"}}
    raw = RAW | {"base": RAW["base"] | few}
    sweep = queue.open_sweep(SweepConfig.model_validate(raw), tmp_path)
    plan.top_up(sweep)
    claim = queue.claim(sweep, "w")
    assert claim is not None
    worker = Worker(str(sweep.folder), "w")
    seen: list[tuple[Any, ...]] = []
    with Heartbeat(sweep.files.worker("w")) as beat:
        worker._beat = beat
        monkeypatch.setattr(worker, "_count_epoch", lambda epoch: (Worker._count_epoch(worker, epoch), look()))

        def look() -> None:
            seen.append(tuple(beat.fields[key] for key in ("run", "epoch", "epochs", "epoch_s")))

        worker.perform(sweep, claim, StopRequest(sweep.folder, 1.0))
    assert [line[:3] for line in seen] == [(claim.run_id, epoch, 3) for epoch in (1, 2, 3)]
    assert seen[0][3] is None
    assert all(0 < line[3] < 60 for line in seen[1:])
    log = sweep.files.run(claim.run_id).log.read_text()
    assert re.search(r"epoch +1  loss \d\.\d+  val \d+\.\d+ % at 2 bits  oscillation", log)


def test_status_puts_back_what_dead_workers_held(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    queue.claim(sweep, "never seen")
    found = status_report(sweep)
    assert sum(cell["running"] for cell in found["cells"]) == 0
    assert found["state"] == "stopped"
    assert found["eta_s"] is None  # nobody works


def test_status_knows_a_complete_sweep(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    finish_tuning(sweep, lambda claim: record(0.5))
    for claim in claims(sweep):
        tell(sweep, claim, {"rows": []})
    found = status_report(sweep)
    assert (found["state"], found["left"], found["eta_s"]) == ("complete", 0, 0)


def test_a_failure_is_shown_with_its_reason_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    claim = fail_one(sweep)
    folder = sweep.files.run(claim.run_id).path
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("epoch 1\n")
    (failure,) = status_report(sweep)["failures"]
    assert failure["reason"] == "ValueError: no"
    assert failure["log"] == str(folder / "log.txt")
    assert status.main([str(sweep.folder)]) == 0
    printed = capsys.readouterr().out
    for part in (claim.run_id, "ValueError: no", "log.txt", TWO, THREE, "harness.retry"):
        assert part in printed
    assert status.main([str(sweep.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == [failure]


def test_status_needs_no_torch_and_names_what_is_there(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    code = "import sys; from harness.status import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code, str(sweep.folder)], capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
    (tmp_path / "x.yaml").write_text("name: ss\n")
    with pytest.raises(UserError, match=r"did you mean 's'\? \(launched there: s\)"):
        status.main([str(tmp_path / "x.yaml"), "--root", str(tmp_path)])


@pytest.mark.parametrize("verb", [status, cancel, retry, logs], ids=lambda verb: verb.__name__)
def test_a_sweep_is_found_by_its_name(
    verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.top_up(open_sweep(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()  # no sweep, and goes after one of that name
    assert verb.main(["s", "--root", "runs"]) == 0
    said = capsys.readouterr().out
    assert any(word in said for word in ("s: stopped", "no worker was running", "runs/s: no run failed", "no run has"))


@pytest.mark.parametrize("verb", [status, cancel, retry], ids=lambda verb: verb.__name__)
def test_a_name_that_no_sweep_has_is_refused(verb: Any, tmp_path: Path) -> None:
    open_sweep(tmp_path)
    with pytest.raises(UserError, match=r"/ss: no sweep was launched there; did you mean 's'\? \(launched there: s\)"):
        verb.main(["ss", "--root", str(tmp_path)])
    with pytest.raises(UserError, match=r"ss\.yaml: no such file"):
        verb.main(["ss.yaml", "--root", str(tmp_path)])


# cancel


def test_cancel_ends_what_runs_here_and_frees_its_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    assert queue.claim(sweep, "busy") is not None
    folder = sweep.folder / "workers" / "busy"
    code = (
        "import sys, time; from pathlib import Path; from harness.records.heartbeat import Heartbeat\n"
        "from harness.records.run_directory import RunDirectory\n"
        "with Heartbeat(RunDirectory(Path(sys.argv[1]))): print('ready', flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    waiting = sweep.folder / "workers" / "waiting"
    waiting.mkdir()
    write_json(waiting / "submitted.json", {"cluster": "local", "job_id": "1"})
    begun = time.monotonic()
    # Our child would stay a zombie, which is as dead as it gets.
    assert cancel.main([str(sweep.folder)]) == 0
    assert worker.wait(10) == -signal.SIGTERM
    assert time.monotonic() - begun < 10
    assert "2 workers stopped; 10 runs are left; launch it again to go on" in capsys.readouterr().out
    assert states(sweep, TWO) == {"WAITING": 3}
    assert (sweep.files.stop).exists()
    found = status_report(sweep)
    assert found["state"] == "cancelled"
    assert {worker["name"]: worker["state"] for worker in found["workers"]}["waiting"] == "cancelled"


def test_a_worker_that_does_not_stop_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    monkeypatch.setattr(cancel, "PATIENCE_S", 1.0)
    files = RunDirectory(sweep.folder / "workers" / "far")
    files.path.mkdir(parents=True)
    write_json(files.status, {"state": "running", **process_identity(), "machine": "elsewhere", "host": "node9"})
    assert cancel.main([str(sweep.folder)]) == 1
    said = capsys.readouterr()
    assert said.err == f"still stopping: pid {os.getpid()} on node9, after its current step\n"
    assert said.out == "10 runs are left; launch it again to go on\n"


def test_cancel_says_that_no_worker_was_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.top_up(open_sweep(tmp_path))
    assert cancel.main([str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out == "no worker was running; 10 runs are left; launch it again to go on\n"


# retry


def test_a_failed_trial_gets_another_chance_with_its_parameters(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, tune={"trials": 1})
    plan.top_up(sweep)
    failed = fail_one(sweep)
    plan.top_up(sweep)
    assert by_cell(sweep)[TWO]["failed"] == 1
    assert retry.main([str(sweep.folder)]) == 0
    assert retry.main([str(sweep.folder)]) == 0  # nothing is left to repeat
    cell = by_cell(sweep)[TWO]
    assert (cell["total"], cell["failed"], cell["waiting"]) == (3, 0, 3)
    again = next(claim for claim in claims(sweep) if claim.cell.id == TWO)
    assert again.trial.number != failed.trial.number
    assert (again.params, again.run_id) == (failed.params, failed.run_id)
    tell(sweep, again, record(0.9))
    plan.top_up(sweep)
    assert by_cell(sweep)[TWO]["done"] == 1
    assert {entry["id"]: entry for entry in sweep.files.cell_entries()}[TWO]["chosen"]["run_id"] == failed.run_id


def test_a_failed_final_run_gets_another_chance(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    finish_tuning(sweep, lambda claim: record(0.5))
    failed = fail_one(sweep)
    assert failed.phase == "final"
    assert retry.main([str(sweep.folder), failed.run_id[:6]]) == 0
    finals = claims(sweep)
    assert len(finals) == 4
    assert [claim.run_id for claim in finals].count(failed.run_id) == 1
    for claim in finals:
        tell(sweep, claim, {"rows": []})
    assert status_report(sweep)["state"] == "complete"


@pytest.mark.parametrize(
    ("fails", "state", "said"),
    [
        (lambda claim: claim.phase == "final" and claim.seed == 0, "failed", "8 of 10 runs done, 2 failed"),
        (lambda claim: claim.phase == "tune" and claim.cell.id == TWO, "failed", "5 of 8 runs done, 3 failed"),
        (lambda claim: claim.phase == "tune" and claim.trial.number == 0, "complete", "8 of 10 runs done, 2 failed"),
    ],
    ids=["a final of each cell", "all trials of a cell", "a trial of each cell"],
)
def test_a_sweep_with_failed_finals_is_not_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Any, state: str, said: str
) -> None:
    sweep = open_sweep(tmp_path)
    for _ in ("tune", "final"):
        plan.top_up(sweep)
        for claim in claims(sweep):
            if fails(claim):
                queue.tell_failed(sweep, claim, "ValueError: no", retry=False)
            else:
                tell(sweep, claim, record(0.5))
    assert status_report(sweep)["state"] == state
    assert status.main([str(sweep.folder)]) == 0
    assert capsys.readouterr().out.startswith(f"s: {state}, {said}\n")
    assert (plan.ending(sweep) == "complete, nothing to do") == (state == "complete")


def test_only_failed_runs_can_be_retried(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    failed = fail_one(sweep)
    with pytest.raises(UserError, match=f"run 'abc' is no failed run.*failed: {failed.run_id}"):
        retry.main([str(sweep.folder), "abc"])
    assert by_cell(sweep)[TWO]["failed"] == 1


def test_changed_code_has_to_be_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    failed = fail_one(sweep)
    write_json(sweep.folder / "code.json", {"code": {"source": "other"}, "changes": []})
    files = sweep.files.run(failed.run_id)
    files.path.mkdir(parents=True)
    files.checkpoint.write_bytes(b"by the old code")
    with pytest.raises(UserError, match="launched with files other: say what changed with --changed-code"):
        retry.main([str(sweep.folder)])
    assert files.checkpoint.exists()
    assert retry.main([str(sweep.folder), "--changed-code", "the loss was wrong"]) == 0
    assert not files.checkpoint.exists()  # what the old code left half done is not continued
    code = json.loads((sweep.folder / "code.json").read_text())
    assert code["code"] == code_version.code_version()
    assert [(change["from"], change["why"]) for change in code["changes"]] == [
        ({"source": "other"}, "the loss was wrong")
    ]
    trials = sweep.studies[TWO].get_trials(deepcopy=False)
    assert trials[-1].user_attrs["changed_code"] == "the loss was wrong"


# logs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that failed at its second attempt, and another."""
    folder = tmp_path / "s/runs/abc123abc123"
    folder.mkdir(parents=True)
    (folder.parent / "abd456abd456").mkdir()
    (folder / "log.txt").write_text("--- first\nepoch 1\n--- second\nepoch 2\n")
    fields = {"attempt": 2, "host": "node3", "job_id": "5_1", "traceback": "Traceback: oh no"}
    write_json(folder / "status.json", {"state": "failed", **fields})
    return folder


def test_logs_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert logs.main(["abc", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("--- first\nepoch 1\n--- second\nepoch 2\n")
    assert "abc123abc123: failed, attempt 2 on node3, job 5_1\nTraceback: oh no" in printed
    assert logs.main([str(run), "--lines", "1", "--follow"]) == 0  # it is over, so there is nothing to wait for
    assert capsys.readouterr().out.startswith("epoch 2\n---")


@pytest.mark.parametrize(
    ("named", "said"), [("ab", "could be any of abc123abc123, abd456abd456"), ("x", "is not under")]
)
def test_a_run_that_is_not_clear(run: Path, tmp_path: Path, named: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        logs.main([named, "--root", str(tmp_path)])
    with pytest.raises(UserError, match="no log"):
        logs.main(["abd456", "--root", str(tmp_path)])
    assert os.listdir(tmp_path) == ["s"]


PREVIOUS = Path(__file__).parents[1] / "cluster/previous_version"
LISTED = [
    "645aeeaca87e  tune   oscillation,target_bit=2  trial 0    done",
    "f0a71ad78a26  tune   oscillation,target_bit=2  trial 1    done",
    "836b859001f9  final  oscillation,target_bit=2  seed 0     done",
    "8d0dcf7f27a1  tune   ste,target_bit=2          trial 0    done",
    "7e57ba906411  tune   ste,target_bit=2          trial 1    done",
    "32bb5f258e16  final  ste,target_bit=2          seed 0     done",
]


@pytest.mark.parametrize("named", ["small", "small.yaml", "small/"], ids=["name", "file", "folder"])
def test_logs_of_a_sweep_list_its_runs(named: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = named if named == "small" else str(PREVIOUS / named)
    assert logs.main([path, "--root", str(PREVIOUS)]) == 0
    assert capsys.readouterr().out.splitlines() == LISTED


def test_logs_of_a_cell_list_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert logs.main(["ste,target_bit=2", "--root", str(PREVIOUS)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [line[:12] for line in LISTED[3:]]
    with pytest.raises(UserError, match="has 3 runs; --follow and --lines are for one"):
        logs.main(["ste,target_bit=2", "--root", str(PREVIOUS), "--follow"])
    with pytest.raises(UserError, match="did you mean 'ste,target_bit=2'"):
        logs.main(["ste,target_bit=4", "--root", str(PREVIOUS)])


def test_logs_of_a_sweep_that_has_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.top_up(open_sweep(tmp_path))
    assert logs.main(["s", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "s: no run has begun\n"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"methods": "ste", "target_bit": 3}, "val 33.50 % at 3 bits  osc"),
        ({"methods": "none", "watch_bit": 2}, "val 33.50 % in float  osc"),
        ({"methods": "oscillation", "target_bit": 2}, "val 33.50 % at 2 bits  osc"),
    ],
    ids=str,
)
def test_an_epoch_s_line_says_where_accuracy_is_measured(about: dict[str, Any], said: str) -> None:
    metrics = {"epoch": 1, "train/loss": 1.0, "val/monitor": 0.335, "osc/frequency": 0.0}
    assert said in epoch_line(complete({**RAW["base"], **about}), metrics)


# python -m harness


def test_python_m_harness_lists_every_command_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    there = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__", "__main__"}
    assert set(commands.COMMANDS) == there | {"methods"}
    assert commands.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in commands.COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"python -m harness.{name} ")]
        assert len(line.removeprefix(f"python -m harness.{name}").strip()) > 10
        assert len(line) <= 110


@pytest.mark.parametrize(
    ("word", "said"),
    [("launch", "write python -m harness.launch, with a dot"), ("lanch", "did you mean 'launch'?"), ("xyz", "legal:")],
)
def test_a_command_after_a_blank_is_refused_with_what_to_write(word: str, said: str) -> None:
    ended = run_here("harness", word, "sweep.yaml", "--dry-run")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
