"""The run directory: whole files only, and who is alive."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness import record
from harness.record import Heartbeat, RunDirectory, is_alive, read_json, write_json, written_aside


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"ü": "x"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert names(tmp_path) == {"x.json"}


class Crash(BaseException):
    """What no `except Exception` catches, as a signal would be."""


def _write_half(path: Path) -> None:
    with written_aside(path) as aside:
        aside.write_text('{"new": ')
        raise Crash


def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(Crash):
        _write_half(path)
    assert read_json(path) == {"old": 1}
    assert names(tmp_path) == {"x.json"}


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")
    with written_aside(path) as aside:
        aside.write_text('"new"')
        assert aside.parent == path.parent  # a rename within one file system is atomic
        assert read_json(path) == "old"
    assert read_json(path) == "new"


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")

    def fail(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, "new")
    assert read_json(path) == "old"
    assert names(tmp_path) == {"x.json"}


def test_what_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    write_json(tmp_path / "x.json", 1)
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("value", [math.nan, math.inf, {"x": [-math.inf]}])
def test_a_figure_that_json_has_no_word_for_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b'{"a": "\xff', b"\x80"])
def test_a_file_that_is_not_whole_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json") is None


def test_a_missing_file_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "none" / "x.json") is None
    assert read_json(tmp_path / "file" / "x.json") is None


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, over = tmp_path / "x.json", threading.Event()
    write_json(path, ["a"] * 2000)

    def write(letter: str) -> None:
        while not over.is_set():
            write_json(path, [letter] * 2000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    try:
        seen = [read_json(path) for _ in range(300)]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert all(value in (["a"] * 2000, ["b"] * 2000) for value in seen)


# metrics.jsonl


def directory(tmp_path: Path, *lines: dict[str, Any]) -> RunDirectory:
    files = RunDirectory(tmp_path)
    for line in lines:
        files.append_metrics(line)
    return files


def test_metrics_in_the_order_of_epochs_the_last_of_two_counts(tmp_path: Path) -> None:
    files = directory(tmp_path, {"epoch": 1, "x": 1}, {"epoch": 2, "x": 2}, {"epoch": 2, "x": 3}, {"epoch": 1, "x": 4})
    assert files.read_metrics() == [{"epoch": 1, "x": 4}, {"epoch": 2, "x": 3}]


@pytest.mark.parametrize("torn", ['{"epoch": 3, "x"', '{"epoch": 3', "{", '{"epoch": 3, "x": 1e'])
def test_a_torn_line_does_not_count(tmp_path: Path, torn: str) -> None:
    files = directory(tmp_path, {"epoch": 1}, {"epoch": 2})
    with open(files.metrics, "a") as file:
        file.write(torn)
    assert files.read_metrics() == [{"epoch": 1}, {"epoch": 2}]
    files.keep_metrics_until(2)
    files.append_metrics({"epoch": 3, "x": 1})
    assert files.read_metrics() == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "x": 1}]


@pytest.mark.parametrize("torn", ["1", "null", "{}"])
def test_a_line_that_is_json_by_accident_does_not_count(tmp_path: Path, torn: str) -> None:
    files = directory(tmp_path, {"epoch": 1})
    with open(files.metrics, "a") as file:
        file.write(torn)
    assert files.read_metrics() == [{"epoch": 1}]


def test_a_figure_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    files = directory(tmp_path, {"epoch": 1, "nan": math.nan, "inf": math.inf, "minus": -math.inf, "big": 1e200})
    assert files.read_metrics() == [{"epoch": 1, "big": 1e200}]
    assert json.loads(files.metrics.read_text()) == {"epoch": 1, "big": 1e200}


@pytest.mark.parametrize("until", [0, 1, 2, 3, 9])
def test_epochs_that_will_be_repeated_are_dropped(tmp_path: Path, until: int) -> None:
    files = directory(tmp_path, *({"epoch": epoch} for epoch in (1, 2, 3)))
    files.keep_metrics_until(until)
    assert files.read_metrics() == [{"epoch": epoch} for epoch in (1, 2, 3) if epoch <= until]


def test_without_metrics_there_is_nothing_to_drop(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.keep_metrics_until(3)
    assert files.read_metrics() == []
    assert names(tmp_path) == set()


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
        assert "test_record.py" in after["traceback"]
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
    monkeypatch.setattr(record, "HEARTBEAT_EVERY_S", 0.01)
    files = RunDirectory(tmp_path)
    with Heartbeat(files) as beat:
        first, end = status(files)["heartbeat"], time.monotonic() + 5
        while status(files)["heartbeat"] == first and time.monotonic() < end:
            time.sleep(0.01)
        assert status(files)["heartbeat"] > first
        beat.state = "done"
    assert not beat._thread.is_alive()


def test_a_beat_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "HEARTBEAT_EVERY_S", 0.01)
    files, failed = RunDirectory(tmp_path), threading.Event()
    write = record.write_json

    def full(path: Path, value: Any) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    with Heartbeat(files) as beat:
        monkeypatch.setattr(record, "write_json", full)
        assert failed.wait(5)
        time.sleep(0.05)
        assert beat._thread.is_alive()
        monkeypatch.setattr(record, "write_json", write)
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
    assert is_alive(record.process_identity())
    assert is_alive({**record.process_identity(), "heartbeat": 0})  # asked on this host, however late its beat


def test_a_process_that_ended_is_not_alive() -> None:
    code = "import json; from harness.record import process_identity; print(json.dumps(process_identity()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    identity = json.loads(ended.stdout)
    assert identity["pid"] != os.getpid()
    assert not is_alive({**identity, "heartbeat": time.time()})


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = {"host": socket.gethostname(), "pid": child.pid, "pid_started": record._start_time(child.pid)}
    assert is_alive(identity)
    child.kill()
    end = time.monotonic() + 5
    while is_alive(identity) and time.monotonic() < end:  # not waited for: its entry stays in the process table
        time.sleep(0.01)
    assert not is_alive(identity)
    child.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times come from /proc")
def test_another_process_with_the_same_pid_is_not_the_same() -> None:
    identity = record.process_identity()
    assert not is_alive({**identity, "pid_started": "1"})
    assert not is_alive({**identity, "pid_started": None})


@pytest.mark.parametrize(("age_s", "alive"), [(0, True), (50, True), (70, False), (1e9, False)])
def test_on_another_host_the_heartbeat_decides(age_s: float, alive: bool) -> None:
    other = {**record.process_identity(), "host": "elsewhere.example"}
    assert is_alive({**other, "heartbeat": time.time() - age_s}) is alive


@pytest.mark.parametrize("partial", [{}, {"host": socket.gethostname()}, {"host": socket.gethostname(), "pid": 0}])
def test_a_status_that_names_no_process_is_not_alive(partial: dict[str, Any]) -> None:
    assert not is_alive(partial)


@pytest.mark.parametrize(("pid", "started"), [(os.getpid(), "unknown"), (2**22 + 1, None)], ids=["own", "none"])
def test_without_proc_a_signal_asks(pid: int, started: str | None) -> None:
    assert record._start_time_without_proc(pid) == started
