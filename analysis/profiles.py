"""Methods over many tasks: scores, their interquartile mean, and the performance profile.

Agarwal et al. 2021 (arXiv 2108.13264, sections 3 and 4). A task is one model on one data set deployed at one
bit-width; a method has one score a task and seed. Scores of all tasks are pooled, and resampled task by task.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis import deployment, measure
from analysis.series import Group
from harness.core.bits import FLOAT
from harness.core.metric import Metric

Floats = NDArray[np.float64]
#: Task -> scores, shape (seeds,).
Scores = Mapping[str, Floats]

RESAMPLES, LEVEL = 2000, 0.95
#: Of every method's generator, so that its interval depends neither on the day nor on what other methods there are.
_SEED = 20250200490


class Benchmark(NamedTuple):
    """Method (training label) -> task -> scores, over tasks that all of the methods have in common.

    relative: whether scores are shares of the group's score in float (of metrics of which the lowest is best: shares
    that the latter is of them), or scores as they are shown.
    groups: those that the tasks are from, all of one metric.
    """

    scores: dict[str, dict[str, Floats]]
    relative: bool
    notes: tuple[str, ...]
    groups: tuple[Group, ...] = ()
    #: What no score that is not relative can be above.
    highest: float = 100.0

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for own in self.scores.values() for task in own))

    def seeds(self) -> list[int]:
        """How many each method has of each task, zeros left out."""
        return [len(values) for own in self.scores.values() for values in own.values()]


def collect(groups: Sequence[Group]) -> Benchmark:
    """The scores of the methods that every task has, at least one seed each; nothing is filled in for the others."""
    groups, notes = _comparable(groups)
    for chosen in (_fullest, _unlabelled):
        groups, without = chosen(groups)
        notes += without
    in_float = [_in_float(group) for group in groups]
    relative = None not in in_float
    notes += [] if relative else [_lacking(groups, in_float)]
    scores: dict[str, dict[str, Floats]] = {}
    tasks: dict[str, None] = {}
    for group, name, whole in zip(groups, _names(groups), in_float):
        for point in (point for point in group.points() if point != FLOAT):
            task = f"{name}, {deployment.title(point)}"
            tasks[task] = None
            for one in group.trained:
                if values := one.scores(point):
                    own = _scores(values, whole if relative else None, group.metric)
                    scores.setdefault(one.training_label, {})[task] = own
    complete = {method: own for method, own in scores.items() if len(own) == len(tasks)}
    notes += [_left_out(method, own, list(tasks)) for method, own in scores.items() if method not in complete]
    highest = measure.range_of(groups[0].metric)[1] if groups else math.inf
    return Benchmark(complete, relative, tuple(notes), tuple(groups), highest)


def _fullest(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """Of the sweeps of one model on one data set those with the most methods, tuned for their targets if any is.

    A control with a few methods, or a study of something else, would leave those few alone to be compared.
    """

    def methods(group: Group) -> tuple[bool, int]:
        return group.objective == ("target",), len({one.training_label for one in group.series})

    most = {group.title: max(methods(each) for each in groups if each.title == group.title) for group in groups}
    kept = [group for group in groups if methods(group) == most[group.title]]
    left = [f"{group.title} ({group.sweep})" for group in groups if methods(group) != most[group.title]]
    return kept, [f"left out, since another sweep of the same has more methods: {'; '.join(left)}"] if left else []


def _unlabelled(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """Those without a label of their own, if they are of two models or data sets at least; all otherwise.

    A label says that a sweep is something else than its model and data say, as a reduced one is. Its few methods
    would be the only ones that every task has.
    """

    def labelled(group: Group) -> bool:
        return bool((group.settings or {}).get("label"))

    kept = [group for group in groups if not labelled(group)]
    left = [f"{group.title} ({group.sweep})" for group in groups if labelled(group)]
    if not left or len({group.title for group in kept}) < 2:
        return list(groups), []
    return kept, [f"left out, since a label sets it apart: {'; '.join(left)}"]


def _comparable(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """Those of the metric that the most of them have: shares of accuracies and of decibels say nothing together.

    Of a metric whose lowest is best, those that have a score in float to be compared with.
    """
    metric = Counter(group.metric for group in groups).most_common(1)[0][0]
    kept = [group for group in groups if group.metric == metric]
    left = [f"{group.title} ({group.metric.name})" for group in groups if group.metric != metric]
    notes = [f"left out, since most are about {metric.name}: {'; '.join(left)}"] if left else []
    if metric.higher_is_better:
        return kept, notes
    whole = [group for group in kept if _in_float(group) is not None]
    lacking = [group.title for group in kept if group not in whole]
    why = "left out, without exactly one series of float training to compare with"
    return whole, [*notes, *([f"{why}: {'; '.join(lacking)}"] if lacking else [])]


def _in_float(group: Group) -> float | None:
    """Mean over seeds of the float score of float training; None without exactly one such series, or one above 0.

    Of several, which differ in some other setting, none is the reference more than the others.
    """
    found = [one for one in group.trained if one.method == FLOAT]
    values = found[0].scores(FLOAT) if len(found) == 1 else []
    mean = float(np.mean(values)) if values else 0.0
    return mean if mean > 0 else None


def _scores(values: Sequence[float], whole: float | None, metric: Metric) -> Floats:
    """Of a method at a task: relative to the score in float, or as they are shown without one."""
    if whole is None:
        return np.array(values) / (1 / metric.scale)
    return np.array(values) / whole if metric.higher_is_better else whole / np.array(values)


def _lacking(groups: Sequence[Group], in_float: Sequence[float | None]) -> str:
    names = [name for name, value in zip(_names(groups), in_float) if value is None]
    what = "accuracies in %" if groups[0].metric.unit == "%" else f"{groups[0].metric.name}, not relative to float"
    return f"scores are {what}: not exactly one series of float training to compare with for {'; '.join(names)}"


def _left_out(method: str, own: Scores, tasks: Sequence[str]) -> str:
    missing = [task for task in tasks if task not in own]
    examples = "; ".join(missing[:3]) + ("; ..." if len(missing) > 3 else "")
    return f"{method} left out: no seed in {len(missing)} of {len(tasks)} tasks ({examples})"


def _names(groups: Sequence[Group]) -> list[str]:
    """Titles, with the sweep where two groups share one."""
    titles = [group.title for group in groups]
    return [f"{group.title} ({group.sweep})" if titles.count(group.title) > 1 else group.title for group in groups]


def interquartile_mean(scores: Floats) -> Floats:
    """Mean of the middle half of the last axis: of n sorted scores, floor(n / 4) are cut at either end.

    As scipy.stats.trim_mean(scores, 0.25), which the paper's code uses. (..., n) -> (...).
    """
    cut = scores.shape[-1] // 4
    ordered = np.partition(scores, (cut, scores.shape[-1] - cut - 1), axis=-1)
    return np.asarray(ordered[..., cut : scores.shape[-1] - cut].mean(axis=-1))


def profile(scores: Floats, thresholds: Floats) -> Floats:
    """Fraction of the scores (..., n) that are at least each of the ascending thresholds (T,), shape (..., T)."""
    reached = np.searchsorted(thresholds, scores, side="right")  # how many of the thresholds each score reaches
    rows = reached.reshape(-1, scores.shape[-1])
    slots = len(thresholds) + 1
    counts = np.bincount((rows + slots * np.arange(len(rows))[:, None]).ravel(), minlength=slots * len(rows))
    above = counts.reshape(len(rows), slots)[:, ::-1].cumsum(axis=1)[:, ::-1]
    return (above[:, 1:] / scores.shape[-1]).reshape(*scores.shape[:-1], len(thresholds))


def resample(scores: Scores, number: int = RESAMPLES) -> Floats:
    """`number` samples of the pooled scores, seeds drawn anew with replacement within each task.

    Shape (number, scores); a task keeps its place and its number of seeds in each.
    """
    sizes = np.array([len(values) for values in scores.values()])
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = np.random.default_rng(_SEED).integers(0, np.repeat(sizes, sizes), size=(number, sizes.sum()))
    return np.asarray(pooled(scores)[starts + drawn])


def pooled(scores: Scores) -> Floats:
    """All scores of a method, task after task, shape (scores,)."""
    return np.concatenate(list(scores.values()))


def interval(samples: Floats) -> tuple[Floats, Floats]:
    """The 95% percentile interval over the first axis: low and high, in the shape of the rest."""
    low, high = np.quantile(samples, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return low, high
