"""The benches of a method that stand beside each other in a root, and where each comparison is written."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from harness.cli.dry_run import searched
from harness.core import outside
from harness.core.errors import UserError
from harness.core.outside import shown
from harness.records.files import read_json
from harness.records.sweep_directory import SweepDirectory
from harness.sweep.changes import check_change, settled
from harness.sweep.config import SweepConfig, from_json


def figures_of(own: Path, against: Path, suite: str) -> Path:
    """The folder of a comparison: one for each set of records, since all share the bench's runs.

    own: the bench's. against: the records'. suite: the name of the records that are compared with by default.
    """
    name = against.resolve().name
    return own / ("figures" if name == suite else f"figures-{name}")


def goes_on(folder: Path, spec: SweepConfig) -> str:
    """What the same command without --so-far would do with a bench that is there."""
    try:
        check_change(folder, settled(folder, spec))
    except UserError as error:
        return f"the same command without --so-far would be refused: {error}"
    return "the same command without --so-far goes on"


def others(root: Path, spec: SweepConfig) -> str:
    """`; there is runs/bench-pull-1a2b3c (it searches train.learning_rate in [0.001, 0.01])`, or nothing.

    Of benches of this method in a root but the one of this name; each with how it differs.
    """
    found = [f"{folder} ({', '.join(_differences(other, spec))})" for folder, other in _benches(root, spec)]
    return f"; there {'is' if len(found) == 1 else 'are'} {', '.join(found)}" if found else ""


def _benches(root: Path, spec: SweepConfig) -> Iterator[tuple[Path, SweepConfig]]:
    for folder in sorted(root.glob("bench-*")):
        raw = read_json(SweepDirectory(folder).sweep)
        outside.look_in(SweepDirectory(folder).components)
        try:
            other = None if raw is None else from_json(raw)
        except ValidationError:  # by a version whose files this one does not read, or its method's file is gone
            continue
        if other and other.name != spec.name and shown(_stack(other)[-1]) == shown(_stack(spec)[-1]):
            yield folder, other


def _stack(spec: SweepConfig) -> list[str]:
    return [str(entry["name"]) for entry in spec.cells[0].methods]


def _differences(other: SweepConfig, spec: SweepConfig) -> list[str]:
    """How a bench differs from the one that is asked for, in what its name says."""
    theirs, ours = _stack(other), _stack(spec)
    found = []
    if theirs[:-1] != ours[:-1]:
        found.append(f"--on {' --on '.join(map(shown, theirs[:-1]))}" if theirs[:-1] else "without --on")
    if theirs[-1] != ours[-1]:
        found.append("the method's file was another")
    if other.cells[0].search != spec.cells[0].search:
        found.append(f"it searches {searched(other.cells[0].search)}")
    return found or ["--search was written in another way"]
