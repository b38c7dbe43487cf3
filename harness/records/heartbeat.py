"""status.json of a run or worker: its state, its process, and the time of its last heartbeat."""

import json
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.records.files import read_json, write_json
from harness.records.run_directory import RunDirectory

#: A process that cannot be looked up here counts as dead once its heartbeat is older than this.
STALE_AFTER_S = 60.0
HEARTBEAT_EVERY_S = 5.0
_under_way: "list[Heartbeat]" = []


class Heartbeat:
    """Keeps status.json of a run that is under way, and its heartbeat time, up to date.

    Use as a context: `with Heartbeat(directory) as beat: ...; beat.state = "done"`. An exception that leaves the
    block makes the state "failed", with its reason and traceback, unless the state was set before. `each_beat` is
    called every few seconds by the thread that beats.
    """

    def __init__(
        self, directory: RunDirectory, job_id: str | None = None, each_beat: Callable[[], None] = lambda: None
    ) -> None:
        earlier = read_json(directory.status) or {}
        self._directory, self._each_beat = directory, each_beat
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.state = "running"
        self.fields: dict[str, Any] = {
            "attempt": int(earlier.get("attempt", 0)) + 1,
            "failures": int(earlier.get("failures", 0)),
            **process_identity(),
            "job_id": job_id,
            "started": time.time(),
        }

    def __enter__(self) -> "Heartbeat":
        self._directory.path.mkdir(parents=True, exist_ok=True)
        self.write()
        _under_way.append(self)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        _under_way.remove(self)
        self._over.set()
        self._thread.join()
        if error is not None and self.state == "running":  # else the run set what its exception means (stopped, pruned)
            self.state = "failed" if isinstance(error, Exception) else "cancelled"
            if self.state == "failed":
                reason = f"{type(error).__name__}: {error}"
                self.fields |= {"reason": reason, "traceback": "".join(traceback.format_exception(error))}
                self.fields["failures"] += 1
        self._write_if_possible()

    def write(self) -> None:
        """Write status.json now."""
        with self._lock:
            status = {"state": self.state, **self.fields, "heartbeat": time.time()}
            write_json(self._directory.status, status, flushed=False)  # soon written again, or of no more use

    def note(self, **fields: Any) -> None:
        """Add entries to status.json, and write it."""
        self.fields |= fields
        self._write_if_possible()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_EVERY_S):
            self._write_if_possible()
            self._each_beat()

    def _write_if_possible(self) -> None:
        """Tolerates a full or absent disk: a beat may be missed, and writing results raises its own error."""
        try:
            self.write()
        except OSError as error:
            print(f"{self._directory.status}: {error}", file=sys.stderr, flush=True)


def under_way() -> list[Heartbeat]:
    """Those of this process that are open: of a worker, and of the run that it carries out."""
    return list(_under_way)


def process_identity() -> dict[str, Any]:
    """What identifies this process, also against a later one with the same pid."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "pid_started": _start_time(pid)}


def read_status(directory: RunDirectory, now: float | None = None) -> dict[str, Any] | None:
    """status.json with `age_s`, the seconds since it was written; None when it is missing or not whole.

    now: from `files_clock`, a moment ago, for readers of many.
    """
    try:
        with open(directory.status, encoding="utf-8") as file:
            status: dict[str, Any] = json.load(file)
            # Nodes' clocks may differ by minutes: both times are the file system's, and the open file's, since
            # network file systems serve a closed one's from a cache.
            now = files_clock(directory.path) if now is None else now
            return {**status, "age_s": now - os.fstat(file.fileno()).st_mtime}
    except (OSError, ValueError, TypeError):
        return None


def files_clock(folder: Path) -> float:
    """The time now by the clock of the file system that holds a folder; this machine's where nothing may be written."""
    probe = folder / f".clock.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    except OSError:
        return time.time()


def is_alive(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status still runs: asked on its own machine, else by its heartbeat.

    Takes what `read_status` returns; without `age_s` there was no heartbeat.
    """
    if status.get("machine") == _machine():
        pid = int(status.get("pid", 0))
        return pid > 0 and _start_time(pid) is not None and _start_time(pid) == status.get("pid_started")
    return float(status.get("age_s", math.inf)) < STALE_AFTER_S


def state_of(status: Mapping[str, Any] | None) -> str:
    """The state in a status; `lost` where it says running and its process is gone, `unknown` without a status."""
    state = str((status or {}).get("state", "unknown"))
    return "lost" if state == "running" and not is_running(status) else state


def is_running(status: Mapping[str, Any] | None) -> bool:
    """Whether a status is of something under way whose process is alive."""
    return status is not None and status.get("state") == "running" and is_alive(status)


@cache
def _machine() -> str:
    """The scope of a pid: this host, since it was started, and this pid name space."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """A process's start time; None when there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_time_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _start_time_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
