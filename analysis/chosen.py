"""The searched settings that final runs use, and which lie at an end of their range: it may have been too narrow."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.results import SweepResults
from harness.sweep.search_space import Range

NAME = "chosen_settings"
#: This share of a range at each side is its end.
END = 0.1
COLUMNS = ("cell", "setting", "chosen", "low", "high", "log", "position", "end")


def search_spaces(settings: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The search space of each cell, from the sweep as it was launched; nothing where that is not known."""
    from harness.sweep.cells import expand
    from harness.sweep.config import SweepConfig

    if settings is None:
        return {}
    return {cell.id: dict(cell.search) for cell in expand(SweepConfig.model_validate(settings), checked=False)}


def frame(sweep: SweepResults) -> pd.DataFrame:
    """One line for each chosen number that was searched in a range, with columns `COLUMNS`.

    position: in [0, 1], in the logarithm where the range is drawn in it. end: `low` or `high` within `END` of that end,
    else empty.
    """
    spaces = search_spaces(sweep.settings)
    lines = []
    for cell in sweep.cells:
        for setting, value in ((cell.chosen or {}).get("params") or {}).items():
            space = spaces.get(cell.id, {}).get(setting)
            if isinstance(space, Range):
                place = position(space, float(value))
                end = "low" if place <= END else "high" if place >= 1 - END else ""
                lines.append((cell.id, setting, value, space.low, space.high, space.log, place, end))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def position(space: Range, value: float) -> float:
    """Where a value lies between the ends of its range: 0 at the low one, 1 at the high one."""
    if space.log:
        return math.log(value / space.low) / math.log(space.high / space.low)
    return (value - space.low) / (space.high - space.low)


def note(found: pd.DataFrame) -> list[str]:
    """How many chosen settings lie at an end of their range, as a note; none where none does."""
    ends = int((found["end"] != "").sum())
    share = f"{ends} of {len(found)} chosen settings {'lie' if ends > 1 else 'lies'} in the outer tenth of the range"
    return [f"{share} that was searched, and a wider one may do better: {NAME}.csv"] if ends else []


def told(setting: Any) -> str:
    """A line of `frame` in words: ` (high end of 0.0003 to 0.01)`; empty where it is at neither end."""
    return f" ({setting.end} end of {setting.low:g} to {setting.high:g})" if setting.end else ""
