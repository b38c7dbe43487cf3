"""The tests that compare a method with the records of others: which are corrected together, what they can decide."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.bits import FLOAT, PlainPoint
from harness.core.config_base import by_name
from harness.core.wording import counted

if TYPE_CHECKING:  # `analysis` reads records by way of this package
    from analysis.series import Group, Series
    from harness.sweep.cells import Cell


def references() -> tuple[str, ...]:
    """Tests against these are corrected together at each target, so that a few seeds can decide them."""
    from analysis.paired import QAT, REGULARIZER

    return FLOAT, QAT, REGULARIZER


def corrected() -> str:
    """How p is corrected, in words."""
    return f"by Holm over the tests against {', '.join(references())} of each target, and over all others together"


def is_compared(theirs: "Series", target: PlainPoint) -> bool:
    """Whether a training of the records is compared with a method at a target: those for it, and float training."""
    return theirs.target in (None, target) and bool(theirs.scores(target))


def families(pairs: Iterable[Any]) -> list[list[Any]]:
    """Pairs (ours, theirs, target) of one network, those that are corrected together in a list each; no empty one."""
    first: dict[str, list[Any]] = {}
    others = []
    together = references()
    for pair in pairs:
        if pair[1].method in together:
            first.setdefault(str(pair[2]), []).append(pair)
        else:
            others.append(pair)
    return [*first.values(), *([others] if others else [])]


def ahead(groups: Sequence["Group"], cells: Sequence["Cell"], seeds: int) -> list[str]:
    """Lines that say, before a run is made, what the tests will be able to decide. groups: of the records."""
    return [line for group in groups for line in _of_group(group, cells, seeds)]


def _of_group(group: "Group", cells: Sequence["Cell"], seeds: int) -> list[str]:
    from analysis.t_tests import LEAST_SEEDS

    model = group.series[0].finals[0].config["model"]["name"]
    targets = {str(cell.raw.get("target_bit")) for cell in cells if _name(cell.raw) == model}
    pairs = [
        (None, theirs, target)
        for target in group.targets()
        if str(target) in targets
        for theirs in group.trained
        if is_compared(theirs, target)
    ]
    found = families(pairs)
    if not found:
        return []
    said = f"{group.title}: {len(pairs)} tests with {seeds} seeds"
    if seeds < LEAST_SEEDS:
        return [f"{said}: fewer than {LEAST_SEEDS} decide nothing; differences are shown for each"]
    sizes = sorted({len(each) for each in found})
    needed = ", ".join(f"{least(size, seeds):.1f} times where {counted(size, 'test')} count together" for size in sizes)
    return [
        f"{said}, p {corrected()}",
        f"  the clearest difference is decided if its mean over seeds exceeds their standard deviation {needed}; "
        "each is shown with its interval",
    ]


def _name(raw: Mapping[str, Any]) -> str:
    return str(by_name(raw.get("model", ""))["name"])


def least(tests: int, seeds: int) -> float:
    """The mean over the standard deviation of differences above which the clearest of some tests is decided."""
    from scipy.stats import t

    from analysis.t_tests import ALPHA

    return float(t.ppf(1 - ALPHA / (2 * tests), seeds - 1)) / math.sqrt(seeds)
