"""The results of a sweep: its cells, final runs and tuning trials, and what is missing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.core.errors import UserError


@dataclass(frozen=True)
class Cell:
    """One cell of the sweep: a method stack at one grid point."""

    id: str
    methods: tuple[str, ...]
    grid: dict[str, Any]
    seeds: tuple[int, ...]
    chosen: dict[str, Any] | None
    finals: dict[int, str]
    failed: tuple[Any, ...]
    #: Tuning trials that the sweep promises; None where that is not known.
    planned_trials: int | None = None


#: Epoch -> metrics, and notes on what could not be read.
Epochs = tuple[dict[int, dict[str, Any]], list[str]]


class Recorded:
    """What a final and a trial can tell from their record."""

    record: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The result rows of a split, in the order of the record."""
        return [row for row in self.record["rows"] if row["split"] == split]


@dataclass(frozen=True)
class Final(Recorded):
    """One finished final run of a cell."""

    cell: Cell
    seed: int
    run_id: str
    record: dict[str, Any] = field(repr=False)
    #: Reads what the run reported, epoch by epoch (harness/records/schema.py has the names).
    epochs: Callable[[], Epochs] = field(repr=False)
    #: Reads which test samples were right, the content of outcomes.json; nothing where there is none.
    outcomes: Callable[[], list[dict[str, Any]]] = field(repr=False, default=list)


@dataclass(frozen=True)
class Trial(Recorded):
    """One finished tuning trial of a cell. Its record knows the validation split only."""

    cell: Cell
    number: int
    run_id: str
    params: dict[str, Any]
    record: dict[str, Any] = field(repr=False)

    @property
    def chosen(self) -> bool:
        """By its run, where that is known: a queue that was rebuilt from records numbers its trials anew."""
        chosen = self.cell.chosen or {}
        return chosen["run_id"] == self.run_id if chosen.get("run_id") else chosen.get("trial") == self.number


@dataclass(frozen=True)
class PrunedTrial:
    """A tuning trial that the pruner stopped: it is over, and has no record.

    config: of its run; epochs: reads what it had reported. Archives of earlier versions have kept neither.
    """

    cell: str
    number: int
    run_id: str = field(default="", compare=False)
    params: dict[str, Any] = field(default_factory=dict, compare=False)
    config: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    epochs: Callable[[], Epochs] = field(default=lambda: ({}, []), compare=False, repr=False)


@dataclass(frozen=True)
class Failure:
    """A run that failed, with what its status.json says of it."""

    run_id: str
    cells: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Missing:
    """A seed of a cell that the sweep promises and the disk does not hold."""

    cell: str
    seed: int
    reason: str


@dataclass
class SweepResults:
    """Everything that analysis reads of one sweep."""

    name: str
    cells: list[Cell]
    #: What was launched (sweep.json), for the reader of a report; None where it is not known.
    settings: dict[str, Any] | None = None
    objective: tuple[str, ...] = ("target",)
    finals: list[Final] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    pruned: list[PrunedTrial] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    #: Finals whose epochs are not all there: their rows count, no mean over epochs does.
    incomplete: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: The sweeps that it is made of, where it is several.
    parts: tuple[str, ...] = ()


def refuse_nothing(sweep: SweepResults) -> None:
    """Raise UserError for a sweep without a single final that can be used."""
    if not sweep.finals:
        progress = f"{sum(cell.chosen is not None for cell in sweep.cells)} of {len(sweep.cells)} cells tuned"
        if sweep.corrupt:
            progress += f", {len(sweep.corrupt)} corrupt records: {'; '.join(sweep.corrupt)}"
        raise UserError(f"sweep {sweep.name!r} has no finished finals yet ({progress}); nothing to draw")
