"""What is said once a sweep's workers were asked to stop."""

from harness.core.wording import counted
from harness.sweep import plan
from harness.sweep.queue import OpenSweep
from harness.sweep.rebuild import as_it_is


def stopped(sweep: OpenSweep, workers: int) -> str:
    """`2 workers stopped; 59 runs are left; launch goes on`. Puts back the trials of workers that ended first."""
    sweep = as_it_is(sweep)
    with sweep.files.lock("plan"):
        plan.reap(sweep)
    runs = plan.left(sweep)
    left = f"{counted(runs, 'run')} {'is' if runs == 1 else 'are'} left; launch goes on" if runs else "no run is left"
    return f"{counted(workers, 'worker')} stopped; {left}"
