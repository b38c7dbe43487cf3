"""The requests that stop a worker, and the state in which it ends.

SIGTERM (scancel), SIGINT and the file `stop.json` (harness.cancel) end it as `cancelled`. SIGUSR2, which Slurm sends
before the time limit and on preemption, ends it as `requeued`: Submitit puts the same worker back into the queue.
Either way it stops between two steps, with a checkpoint. If no step ends in time, it exits before Slurm kills it and
loses the work since the last checkpoint, a few seconds.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from harness.cluster.slurm import is_preempted
from harness.records.heartbeat import Heartbeat, under_way
from harness.records.sweep_directory import SweepDirectory

#: Seconds between SIGTERM and the end of a worker that is in the middle of something long.
TERM_GRACE_S = 7.0


class StopRequest:
    """Whether and how a worker was asked to stop. folder: the sweep's; grace_s: how long Slurm waits after SIGUSR2."""

    def __init__(self, folder: Path, grace_s: float) -> None:
        self._stop_file, self._grace_s = SweepDirectory(folder).stop, grace_s
        self._asked = self._requeue = False
        self._before: Any = None
        self._signal: tuple[int, FrameType | None] = (signal.SIGUSR2, None)
        self.beat: Heartbeat | None = None

    def listen(self) -> None:
        """Take over the signals from Submitit, which ignores SIGTERM and cuts a step short on SIGUSR2."""
        self._before = signal.getsignal(signal.SIGUSR2)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            return
        self._asked, self._signal = True, (number, frame)
        # A cluster that preempts without a warning sends SIGTERM, as scancel does; Slurm knows which it was.
        self._requeue = number == signal.SIGUSR2 or (number == signal.SIGTERM and is_preempted())
        wait_s = self._grace_s if number == signal.SIGUSR2 else TERM_GRACE_S
        timer = threading.Timer(wait_s, self._give_up)
        timer.daemon = True
        timer.start()

    def asked(self) -> bool:
        """Whether to stop before the next step. Cheap: called before every step."""
        return self._asked

    def sleep(self, seconds: float) -> None:
        """Wait, but not for long once asked to stop."""
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(0.1)

    def look(self) -> None:
        """Check whether the sweep was cancelled; called with every heartbeat."""
        if not self._asked and self._stop_file.exists():
            self._asked = True

    def ending(self) -> str:
        """The state in which the worker ends."""
        if not self._asked:
            return "done"
        return "requeued" if self._requeue and callable(self._before) else "cancelled"

    def requeue(self) -> None:
        """Have Submitit requeue the job, if that is what was asked; does not return then."""
        if self._requeue and callable(self._before):
            self._before(signal.SIGUSR2, self._signal[1])

    def _give_up(self) -> None:
        """Exit although no step ended, with the run marked as one that stopped. Another process puts its trial back."""
        for beat in under_way():
            beat.state = self.ending() if beat is self.beat else "cancelled"
            beat.note(gave_up=True)
        print("asked to stop, and no step ended in time: giving up the work since the last checkpoint", flush=True)
        try:
            self.requeue()
        finally:
            os._exit(0 if self.ending() == "requeued" else 143)
