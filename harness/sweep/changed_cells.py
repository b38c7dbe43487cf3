"""Which entries of `cells` are edited, where others may have been added before and between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.dotted import flatten


def changed_in_cells(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of `cells` that were edited, by their places now: `cells.1.search.train.learning_rate`.

    Entries that were added, and values that were added to a grid, are none. An entry that is gone is told by the count
    of all, where there are fewer than there were.
    """
    left, gone = dict(enumerate(after)), []
    for old in before:
        twins = [number for number, new in left.items() if not _edited(old, new)]
        if twins:
            del left[twins[0]]
        else:
            gone.append(old)
    if len(gone) > len(left):
        return [f"cells ({len(before)} then, {len(after)} now)"]
    found: list[str] = []
    for old in gone:
        nearest = min(left, key=lambda number: len(_edited(old, left[number])))
        found += [f"cells.{nearest}.{name}" for name in _edited(old, left.pop(nearest))]
    return found


def has_grown(before: Any, after: Any) -> bool:
    """Whether a list of values has all that it had, in whatever order."""
    return all(isinstance(each, list | tuple) for each in (before, after)) and all(value in after for value in before)


def _edited(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which an entry differs, but for added values of its grid."""
    one, other = dict(flatten(old)), dict(flatten(new))
    return [
        name
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
        and not (name.startswith("grid.") and has_grown(one.get(name), other.get(name)))
    ]
