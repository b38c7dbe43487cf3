"""What the runs of a method cost: time of a training step, time and memory of a deployment."""

import math
import statistics
from collections.abc import Mapping, Sequence

from analysis.series import Series
from harness.core.bits import PlainPoint


def deployment_of(by_target: Mapping[PlainPoint, Series]) -> tuple[float, float]:
    """Seconds, the median over targets, and the most MiB."""
    costs = [one.deployment_cost([target]) for target, one in by_target.items()]
    known = [cost for cost in costs if not math.isnan(cost[0])]
    if not known:
        return math.nan, math.nan
    peaks = [mebibytes for _, mebibytes in known if not math.isnan(mebibytes)]
    return statistics.median(seconds for seconds, _ in known), max(peaks, default=math.nan)


def step_ms(series: Sequence[Series]) -> float:
    """The median over runs of the milliseconds of a training step; nan where a record has none."""
    runs = {final.run_id: final.record["provenance"].get("step_ms") for one in series for final in one.finals}
    known = [value for value in runs.values() if value]
    return statistics.median(known) if known and len(known) == len(runs) else math.nan
