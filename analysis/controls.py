"""Each training against float training whose epoch and settings are chosen at the same target: the control.

What is left of a gain over float training, when float training is chosen as the method is, is the method's own.
"""

from collections.abc import Iterator

from analysis.comparisons import Comparisons, between
from analysis.series import Group, Series
from harness.core.bits import FLOAT, PlainPoint

NAME = "controls"
#: The method of a control: nothing is added to float training, but it has a target.
METHOD = "none"


def of_group(group: Group) -> Comparisons | None:
    """At every point that rounds, each training for a target against the control for that target, p corrected over all
    of them. None where there is no control."""
    found = between(group.metric, _pairs(group))
    title = f"{group.sweep}: {group.title}: against the control"
    return Comparisons(title, group.metric, tuple(found)) if found else None


def _pairs(group: Group) -> Iterator[tuple[Series, Series, PlainPoint]]:
    controls = {one.target: one for one in group.trained if one.method == METHOD and one.target is not None}
    for one in group.trained:
        control = None if one.target is None else controls.get(one.target)
        if control is None or one is control:
            continue
        both = (point for point in group.points() if point != FLOAT and one.scores(point) and control.scores(point))
        yield from ((one, control, point) for point in both)
