"""How settings of finals were chosen: at an end of the searched range, by few trials, or no better than chance."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.frames import val_accuracies
from analysis.measure import metric_of, shown
from analysis.results import Cell, SweepResults, Trial
from analysis.series import Series
from harness.core.bits import FLOAT
from harness.core.errors import UserError
from harness.core.wording import counted
from harness.sweep.search_space import Range
from harness.tasks.classification import ACCURACY

NAME = "chosen_settings"
#: This share of a range at each side is its end.
END = 0.1
#: Up to this many times the accuracy of guessing counts as chance.
CHANCE = 1.5
#: With fewer trials for each searched setting, a better value was likely missed.
PER_SETTING = 3
#: Classes of data sets that have them by their name. Records tell no other number.
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "fashion_mnist": 10, "svhn": 10}
COLUMNS = ("cell", "setting", "chosen", "low", "high", "log", "position", "end", "tuning")
#: Of tables in which verdicts are followed by `bracketed`.
IN_BRACKETS = (
    " In brackets: trainings whose settings were chosen by less than half of the trials or by less than "
    f"{PER_SETTING} for each setting, were no better than chance, or lie in the outer tenth of the range that was "
    "searched."
)
#: So many cells are named in a note.
_NAMED = 5


class Place(NamedTuple):
    """A chosen number in the range that it was searched in; see `frame`."""

    setting: str
    chosen: float
    low: float
    high: float
    log: bool
    position: float
    end: str


def search_spaces(settings: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The search space of each cell, from the sweep as it was launched; nothing where that is not known."""
    from harness.sweep.cells import expand
    from harness.sweep.config import SweepConfig

    if settings is None:
        return {}
    try:
        cells = expand(SweepConfig.model_validate(settings), checked=False)
    except (UserError, ValueError):  # of a version with other keys, or of components that are not here
        return {}
    return {cell.id: dict(cell.search) for cell in cells}


def frame(sweep: SweepResults) -> pd.DataFrame:
    """One line for each chosen number that was searched in a range, with columns `COLUMNS`.

    position: in [0, 1], in the logarithm where the range is drawn in it. end: `low` or `high` within `END` of that end,
    else empty. tuning: what `weak` says of the cell, which has a line without a setting where it searched no range.
    """
    spaces = search_spaces(sweep.settings)
    by_cell, pruned = trials_by_cell(sweep), _pruned(sweep)
    lines: list[tuple[Any, ...]] = []
    for cell in sweep.cells:
        space = spaces.get(cell.id, {})
        told = "; ".join(weak(cell, by_cell.get(cell.id, ()), space, pruned[cell.id]))
        places = list(_places(cell, space))
        lines += [(cell.id, *place, told) for place in places]
        if told and not places:
            lines.append((cell.id, "", None, None, None, None, None, "", told))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _places(cell: Cell, space: Mapping[str, Any]) -> Iterator[Place]:
    for setting, value in ((cell.chosen or {}).get("params") or {}).items():
        found = space.get(setting)
        if isinstance(found, Range):
            place = position(found, float(value))
            end = "low" if place <= END else "high" if place >= 1 - END else ""
            yield Place(setting, value, found.low, found.high, found.log, place, end)


def position(space: Range, value: float) -> float:
    """Where a value lies between the ends of its range: 0 at the low one, 1 at the high one."""
    if space.log:
        return math.log(value / space.low) / math.log(space.high / space.low)
    return (value - space.low) / (space.high - space.low)


def trials_by_cell(sweep: SweepResults) -> dict[str, list[Trial]]:
    """The finished trials of each cell that has some, by its id."""
    found: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        found.setdefault(trial.cell.id, []).append(trial)
    return found


def _pruned(sweep: SweepResults) -> Counter[str]:
    """How many trials of each cell the pruner ended, by its id."""
    return Counter(each.cell for each in sweep.pruned)


def weak(cell: Cell, trials: Sequence[Trial], space: Mapping[str, Any], pruned: int = 0) -> list[str]:
    """What is wrong with a cell's tuning: `1 of 4 trials finished`, `4 trials for 2 settings` (less than `PER_SETTING`
    for each), `best trial at chance`. pruned: trials that the pruner ended, beside the finished ones.

    Nothing where the record of the chosen trial is gone: those of others may be, too. Chance is known for accuracies of
    data sets in `CLASSES` alone; what counts is validation at the target (float training's: in float).
    """
    best = next((trial for trial in trials if trial.chosen), None)
    if best is None:
        return []
    planned, tried = cell.planned_trials or 0, len(trials) + pruned
    few = [f"{len(trials)} of {planned} trials finished"] if 2 * len(trials) < planned else []
    if not few and tried < PER_SETTING * len(space):
        few = [f"{counted(tried, 'trial')} for {counted(len(space), 'setting')}"]
    return [*few, *(["best trial at chance"] if _at_chance(best) else [])]


def _at_chance(trial: Trial) -> bool:
    config = trial.config
    classes, metric = CLASSES.get(config["data"]["name"]), metric_of(config)
    found = val_accuracies(trial).get(config.get("target_bit") or FLOAT)
    return classes is not None and metric == ACCURACY and found is not None and found <= shown(metric, CHANCE / classes)


def doubts(sweep: SweepResults) -> dict[str, tuple[str, ...]]:
    """What leaves verdicts on each cell in doubt, by its id: what `weak` says, and chosen settings at an end of their
    range: `kure.strength at its high end`."""
    spaces, trials, pruned = search_spaces(sweep.settings), trials_by_cell(sweep), _pruned(sweep)
    found = {}
    for cell in sweep.cells:
        space = spaces.get(cell.id, {})
        ends = [f"{place.setting} at its {place.end} end" for place in _places(cell, space) if place.end]
        found[cell.id] = (*weak(cell, trials.get(cell.id, ()), space, pruned[cell.id]), *ends)
    return found


def doubted(sides: Iterable[Series]) -> str:
    """The doubts of trainings that a verdict rests on: `ste@2: 1 of 4 trials finished`; empty where none has any."""
    found = {one.training_label: ", ".join(one.doubts) for one in sides if one.doubts}
    return "; ".join(f"{label}: {what}" for label, what in found.items())


def bracketed(told: str) -> str:
    """What `doubted` says, to follow a verdict."""
    return f" ({told})" if told else ""


def note(found: pd.DataFrame) -> list[str]:
    """How many chosen settings lie at an end of their range, and which cells were hardly tuned, as notes."""
    ends, settings = int((found["end"] != "").sum()), int((found["setting"] != "").sum())
    share = f"{ends} of {settings} chosen settings {'lie' if ends > 1 else 'lies'} in the outer tenth of the range"
    notes = [f"{share} that was searched, and a wider one may do better: {NAME}.csv"] if ends else []
    hardly = dict(zip(found["cell"], found["tuning"], strict=True))
    named = [f"{cell} ({told})" for cell, told in hardly.items() if told]
    if named:
        more = f" and {len(named) - _NAMED} more, in {NAME}.csv" if len(named) > _NAMED else ""
        notes.append(f"hardly tuned, so that verdicts on them say little: {', '.join(named[:_NAMED])}{more}")
    return notes


def told(setting: Any) -> str:
    """A line of `frame` in words: ` (high end of 0.0003 to 0.01)`; empty where it is at neither end."""
    return f" ({setting.end} end of {setting.low:g} to {setting.high:g})" if setting.end else ""
