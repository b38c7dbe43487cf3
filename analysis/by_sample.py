"""Two methods on the same test samples: how sure is the difference of these very networks?

The t interval over seeds says what other seeds would give. With 3 to 5 seeds it is wide, and it does not use that both
methods of a seed are tested on the same samples. The interval here is of the other kind: it says what other test
samples would give these networks, and nothing about other seeds. Within a seed each sample is right for both methods,
for one, or for none; the differences are averaged over seeds for each sample, and samples are the units.
"""

import math
import statistics
from typing import NamedTuple

from analysis.intervals import LEVEL
from analysis.series import Series
from harness.core.bits import PlainPoint


class BySample(NamedTuple):
    """A difference of shares that are right, in points, with its interval over test samples.

    n: samples. seeds: those that both methods have.
    """

    effect: float
    low: float
    high: float
    n: int
    seeds: int


def compare(first: Series, second: Series, point: PlainPoint) -> BySample | None:
    """`first` less `second` at a point. None where no seed has both, or a seed's samples are not as many."""
    one, other = first.right(point), second.right(point)
    seeds = sorted(one.keys() & other.keys())
    sizes = {len(each[seed]) for each in (one, other) for seed in seeds}
    if len(sizes) != 1 or (n := sizes.pop()) < 2:
        return None
    differences = [statistics.fmean(int(one[seed][i]) - int(other[seed][i]) for seed in seeds) for i in range(n)]
    effect = 100 * statistics.fmean(differences)
    quantile = statistics.NormalDist().inv_cdf(0.5 + LEVEL / 2)  # n is in the hundreds: no t is needed
    half = 100 * quantile * statistics.stdev(differences) / math.sqrt(n)
    return BySample(effect, effect - half, effect + half, n, len(seeds))
