"""What gpu_run.py may still do in its time, and commands that are ended when theirs is over."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import bench_report

REPOSITORY = Path(__file__).resolve().parents[2]
#: Seconds of the tests and of the benchmarks at most, and those kept for workers to stop and results to be packed.
PART_S, CLOSING_S = 180.0, 40.0
#: Seconds between the archives of a running sweep, whenever runs were finished.
KEEP_EVERY_S = 15.0
OUT_OF_TIME = "out of time"


def limit_s(part: str, total_s: float, left_s: float) -> float:
    """Seconds that a part may take now. total_s: of the whole command; left_s: until its end."""
    rest = left_s - min(CLOSING_S, total_s / 4)
    return max(0.0, rest if part == "sweeps" else min(PART_S, total_s / 3, rest))


def in_order(names: Sequence[str], rows: Sequence[bench_report.Row]) -> list[str]:
    """The benchmarks still to do: first those never tried, last those that failed or ran out of time before."""
    tried = {row["part"]: "error" in row for row in rows if "part" in row}
    return [name for name in names if name not in tried] + [name for name in names if tried.get(name)]


def run_limited(
    command: Sequence[str], seconds: float, log: Path, each: Callable[[], None] | None = None, grace_s: float = 5.0
) -> int | None:
    """The exit status of a command whose output goes to `log`; None when it was out of time.

    It is asked to stop by SIGINT, `grace_s` seconds before its process group is killed. each: called every second.
    """
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests/benchmarks"), os.environ.get("PYTHONPATH", "")))
    # Run by a test of pytest-xdist, a command is no worker of it.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**outer, "PYTHONPATH": path.rstrip(os.pathsep), "WANDB_MODE": "offline"}
    end = time.monotonic() + seconds
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        while process.poll() is None and time.monotonic() < end:
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(1.0, max(0.0, end - time.monotonic())))
            if each is not None:
                each()
        if process.poll() is not None:
            return process.returncode
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class WhenMore:
    """Calls `keep` when a sweep has more records, but not all the time."""

    def __init__(self, keep: Callable[[], None], runs: Path) -> None:
        self.keep, self.runs, self.records, self.next = keep, runs, 0, 0.0

    def __call__(self) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + KEEP_EVERY_S
        records = sum(1 for _ in self.runs.glob("*/record.json"))
        if records != self.records:
            self.records = records
            self.keep()
