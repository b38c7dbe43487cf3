"""The run directory: whole files only, and who is alive."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from record_common import Crash

from harness.records import heartbeat
from harness.records.files import read_json, write_json
from harness.records.heartbeat import Heartbeat, is_alive, read_status
from harness.records.run_directory import RunDirectory

# status.json


def status(files: RunDirectory) -> dict[str, Any]:
    value: dict[str, Any] = read_json(files.status)
    return value


def test_a_run_that_ends_well(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path / "new")
    with Heartbeat(files, "job_3") as beat:
        before = status(files)
        beat.state = "done"
    after = status(files)
    assert (before["state"], after["state"]) == ("running", "done")
    assert (after["attempt"], after["failures"], after["job_id"]) == (1, 0, "job_3")
    assert (after["pid"], after["host"]) == (os.getpid(), socket.gethostname())
    assert before["started"] <= before["heartbeat"] <= after["heartbeat"] <= time.time()
    assert "reason" not in after


def test_a_run_that_fails_keeps_its_reason_and_traceback(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    for attempt in (1, 2):
        with pytest.raises(ZeroDivisionError), Heartbeat(files):
            _ = 1 / 0
        after = status(files)
        assert (after["state"], after["attempt"], after["failures"]) == ("failed", attempt, attempt)
        assert after["reason"] == "ZeroDivisionError: division by zero"
        assert "test_record_liveness.py" in after["traceback"]
        assert after["traceback"].startswith("Traceback (most recent call last)")
    with Heartbeat(files) as beat:
        beat.state = "done"
    assert (status(files)["attempt"], status(files)["failures"]) == (3, 2)
    assert "reason" not in status(files)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, Crash])
def test_a_run_that_is_broken_off_is_cancelled_not_failed(tmp_path: Path, ending: type[BaseException]) -> None:
    files = RunDirectory(tmp_path)
    with pytest.raises(ending), Heartbeat(files):
        raise ending
    assert (status(files)["state"], status(files)["failures"]) == ("cancelled", 0)


def _leave_as(files: RunDirectory, state: str) -> None:
    with Heartbeat(files) as beat:
        beat.state = state
        raise RuntimeError


@pytest.mark.parametrize("state", ["stopped", "pruned"])
def test_a_state_that_the_run_set_itself_stands(tmp_path: Path, state: str) -> None:
    files = RunDirectory(tmp_path)
    with pytest.raises(RuntimeError):
        _leave_as(files, state)
    assert (status(files)["state"], status(files)["failures"]) == (state, 0)


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_EVERY_S", 0.01)
    files = RunDirectory(tmp_path)
    with Heartbeat(files) as beat:
        first, end = status(files)["heartbeat"], time.monotonic() + 5
        while status(files)["heartbeat"] == first and time.monotonic() < end:
            time.sleep(0.01)
        assert status(files)["heartbeat"] > first
        beat.state = "done"
    assert not beat._thread.is_alive()


def test_a_beat_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_EVERY_S", 0.01)
    files, failed = RunDirectory(tmp_path), threading.Event()
    write = write_json

    def full(*arguments: Any, **keywords: Any) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    with Heartbeat(files) as beat:
        monkeypatch.setattr(heartbeat, "write_json", full)
        assert failed.wait(5)
        time.sleep(0.05)
        assert beat._thread.is_alive()
        monkeypatch.setattr(heartbeat, "write_json", write)
        beat.state = "done"
    assert status(files)["state"] == "done"


def test_a_half_written_status_counts_as_none(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.status.write_text('{"attempt": 5')
    with Heartbeat(files):
        pass
    assert status(files)["attempt"] == 1


# Who is alive


def test_this_process_is_alive() -> None:
    assert is_alive(heartbeat.process_identity())
    assert is_alive({**heartbeat.process_identity(), "age_s": 1e9})  # asked on this machine, however late its beat


def test_a_process_that_ended_is_not_alive() -> None:
    code = "import json; from harness.records.heartbeat import process_identity; print(json.dumps(process_identity()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    identity = json.loads(ended.stdout)
    assert identity["pid"] != os.getpid()
    assert not is_alive({**identity, "age_s": 0})


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = {**heartbeat.process_identity(), "pid": child.pid, "pid_started": heartbeat._start_time(child.pid)}
    assert is_alive(identity)
    child.kill()
    end = time.monotonic() + 5
    while is_alive(identity) and time.monotonic() < end:  # not waited for: its entry stays in the process table
        time.sleep(0.01)
    assert not is_alive(identity)
    child.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times come from /proc")
def test_another_process_with_the_same_pid_is_not_the_same() -> None:
    identity = heartbeat.process_identity()
    assert not is_alive({**identity, "pid_started": "1"})
    assert not is_alive({**identity, "pid_started": None})


def _elsewhere(files: RunDirectory, **changes: Any) -> None:
    other = {**heartbeat.process_identity(), "machine": "elsewhere.example"}
    write_json(files.status, {"state": "running", **other, **changes})


@pytest.mark.parametrize(("age_s", "alive"), [(0, True), (50, True), (70, False), (1e9, False)])
def test_on_another_machine_the_heartbeat_decides(tmp_path: Path, age_s: float, alive: bool) -> None:
    files = RunDirectory(tmp_path)
    _elsewhere(files)
    then = time.time() - age_s
    os.utime(files.status, (then, then))
    found = read_status(files)
    assert found is not None
    assert found["age_s"] == pytest.approx(age_s, abs=5)
    assert is_alive(found) is alive


@pytest.mark.parametrize("skew_s", [-3600.0, 3600.0], ids=["an hour behind", "an hour ahead"])
def test_a_clock_that_is_off_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew_s: float) -> None:
    # Both the writer's and the reader's clock: the file system's alone counts.
    files = RunDirectory(tmp_path)
    _elsewhere(files, heartbeat=time.time() + skew_s)
    real = time.time
    monkeypatch.setattr(heartbeat.time, "time", lambda: real() - skew_s)
    found = read_status(files)
    assert found is not None
    assert is_alive(found)
    os.utime(files.status, (real() - 100, real() - 100))
    found = read_status(files)
    assert found is not None
    assert not is_alive(found)


def test_where_nothing_may_be_written_this_machines_clock_serves(tmp_path: Path) -> None:
    assert heartbeat.files_clock(tmp_path / "not there") == pytest.approx(time.time(), abs=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "partial", [{}, {"machine": heartbeat._machine()}, {"machine": heartbeat._machine(), "pid": 0}]
)
def test_a_status_that_names_no_process_is_not_alive(partial: dict[str, Any]) -> None:
    assert not is_alive(partial)


@pytest.mark.parametrize(("pid", "started"), [(os.getpid(), "unknown"), (2**22 + 1, None)], ids=["own", "none"])
def test_without_proc_a_signal_asks(pid: int, started: str | None) -> None:
    assert heartbeat._start_time_without_proc(pid) == started
