"""What is said once a sweep's workers were asked to stop."""

import socket

from harness.cluster.worker_info import WorkerInfo
from harness.core.wording import counted
from harness.sweep import plan
from harness.sweep.queue import OpenSweep
from harness.sweep.rebuild import as_it_is


def stopped(sweep: OpenSweep, workers: int, stopping: int = 0) -> str:
    """`2 workers stopped; 59 runs are left; launch it again to go on`, once the trials of workers that ended are back.

    workers: how many stopped. stopping: how many may still do so.
    """
    sweep = as_it_is(sweep)
    with sweep.files.lock("plan"):
        plan.reap(sweep)
    runs = plan.left(sweep)
    said = [f"{counted(workers, 'worker')} stopped"] if workers else [] if stopping else ["no worker was running"]
    if not runs:
        return "; ".join([*said, "no run is left"])
    return "; ".join([*said, f"{counted(runs, 'run')} {'is' if runs == 1 else 'are'} left", "launch it again to go on"])


def still_stopping(worker: WorkerInfo) -> str:
    """`still stopping: pid 4711, after its current step`, of a worker that has not stopped in time."""
    # The job of a local worker that has not written its own pid yet is named by the process that starts it.
    process = (
        f"pid {worker.status.get('pid') or worker.job_id}" if worker.cluster == "local" else f"job {worker.job_id}"
    )
    away = f" on {worker.host}" if worker.host not in (None, socket.gethostname()) else ""
    return f"still stopping: {process}{away}, after its current step"
