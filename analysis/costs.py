"""What the runs of a method cost: time of a training step, time and memory of a deployment."""

import math
import statistics
from collections.abc import Mapping, Sequence

from analysis.series import Series
from harness.core.bits import PlainPoint

#: Seeds of a training whose step times span more than this share of their mean tell noise of the machine, no cost.
NOISE = 0.2
NOISY = (
    f"No column of costs, or — in it: the seeds of a training, or of float training, differ by more than {NOISE:.0%} "
    "of their mean in the time of a step, or only one gives it: the machine's noise would pass for a cost."
)


def deployment_of(by_target: Mapping[PlainPoint, Series]) -> tuple[float, float]:
    """Seconds, the median over targets, and the most MiB."""
    costs = [one.deployment_cost([target]) for target, one in by_target.items()]
    known = [cost for cost in costs if not math.isnan(cost[0])]
    if not known:
        return math.nan, math.nan
    peaks = [mebibytes for _, mebibytes in known if not math.isnan(mebibytes)]
    return statistics.median(seconds for seconds, _ in known), max(peaks, default=math.nan)


def cost(series: Sequence[Series], reference: Sequence[Series]) -> tuple[float, bool]:
    """Time of a training step over that of the reference, medians over runs; nan where it is not known.

    Second: whether it is nan for noise alone: a training, of either, has less than two runs or spans more than `NOISE`.
    """
    ratio = step_ms(series) / step_ms(reference)
    noisy = not math.isnan(ratio) and not all(map(_is_steady, (*series, *reference)))
    return (math.nan if noisy else ratio), noisy


def _is_steady(one: Series) -> bool:
    values = [final.record["provenance"]["step_ms"] for final in one.finals]
    return len(values) > 1 and max(values) - min(values) <= NOISE * statistics.mean(values)


def step_ms(series: Sequence[Series]) -> float:
    """The median over runs of the milliseconds of a training step; nan where a record has none."""
    runs = {final.run_id: final.record["provenance"].get("step_ms") for one in series for final in one.finals}
    known = [value for value in runs.values() if value]
    return statistics.median(known) if known and len(known) == len(runs) else math.nan
