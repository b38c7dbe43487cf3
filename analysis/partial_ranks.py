"""Partial rank correlation with an interval: do two things go together once others are held fixed?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.intervals import LEVEL

#: Of the bootstrap: enough that the ends of the interval move by less than 0.02.
DRAWS = 1000


class PartialRank(NamedTuple):
    """Spearman's partial correlation in [-1, 1], its percentile interval over clusters, and the number of clusters."""

    rho: float
    low: float
    high: float
    clusters: int


def partial_rank(frame: pd.DataFrame, x: str, y: str, held: Sequence[str], cluster: str) -> PartialRank:
    """Between columns x and y of a frame without gaps, `held` columns held fixed, by least squares on ranks.

    cluster: the column of what is drawn anew in the bootstrap. Runs that differ by their seed alone are no independent
    evidence on what a method does, so whole clusters are drawn. Draws are the same at every call.
    """
    columns = [x, y, *held]
    parts = [part[columns].to_numpy(float) for _, part in frame.groupby(cluster, sort=True)]
    generator = np.random.default_rng(0)
    draws = [
        _correlation(np.concatenate([parts[i] for i in generator.integers(len(parts), size=len(parts))]))
        for _ in range(DRAWS)
    ]
    known = [each for each in draws if np.isfinite(each)]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(known, [tail, 100 - tail]) if known else (np.nan, np.nan)
    return PartialRank(_correlation(np.concatenate(parts)), float(low), float(high), len(parts))


def _correlation(values: np.ndarray) -> float:
    """Of the first two columns (n, 2 + held); nan where nothing of one is left."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    others = np.column_stack([np.ones(len(ranks)), ranks[:, 2:]])
    left = ranks[:, :2] - others @ np.linalg.lstsq(others, ranks[:, :2], rcond=None)[0]
    norms = np.linalg.norm(left, axis=0)
    if (norms < 1e-9 * np.linalg.norm(ranks[:, :2], axis=0)).any():
        return float("nan")
    return float(left[:, 0] @ left[:, 1] / norms.prod())
