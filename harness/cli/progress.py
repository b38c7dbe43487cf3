"""The display of a launch: progress bars (lines without a terminal), and a table at its end."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.cli import estimate
from harness.cli.status_report import time_left_s
from harness.core.layer_points import AnyPoint
from harness.core.metric import Metric
from harness.records import schema
from harness.records.files import read_json
from harness.sweep import objective, plan
from harness.sweep.queue import OpenSweep
from harness.sweep.trials import Counts

#: Seconds between lines where no bar can be drawn: at least, and at most where nothing changes.
LINES_EVERY_S = (10.0, 300.0)
_PHASES = {"tune": "tuning", "final": "final runs"}


class Display:
    """Bars for both phases with what runs and what failed. Use as a context."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._console = Console()
        self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
        self._tasks = {phase: self._bars.add_task(name, note="") for phase, name in _PHASES.items()}
        self._line, self._line_at = "", float("-inf")

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, sweep: OpenSweep, counts: dict[str, Counts]) -> None:
        """Update the bars, or print a line if something has changed, or nothing for some minutes."""
        if self._console.is_terminal:
            for phase, task in self._tasks.items():
                done = counts[phase].total - counts[phase].left
                self._bars.update(task, completed=done, total=counts[phase].total, note=_note(counts[phase]))
            return
        line, age_s = _line(counts), time.monotonic() - self._line_at
        over = not any(phase.left for phase in counts.values())
        if (line != self._line and (over or age_s > LINES_EVERY_S[0])) or (age_s > LINES_EVERY_S[1] and not over):
            self._line, self._line_at = line, time.monotonic()
            eta_s = None if over else time_left_s(sweep, sum(phase.running for phase in counts.values()))
            print(line if eta_s is None else f"{line}; {estimate.shown(eta_s)} left", flush=True)


def _line(counts: dict[str, Counts]) -> str:
    return "; ".join(
        f"{_PHASES[phase]} {part.total - part.left}/{part.total} ({_note(part) or 'none running'})"
        for phase, part in counts.items()
        if part.total
    )


def _note(counts: Counts) -> str:
    parts = {"running": counts.running, "failed": counts.failed, "pruned": counts.pruned}
    return ", ".join(f"{number} {state}" for state, number in parts.items() if number)


def summary(sweep: OpenSweep) -> int:
    """Print the table of cells and the failures; returns the exit status: 1 when any run failed."""
    counts = plan.count(sweep)
    metric = sweep.spec.metric
    tested = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
    table = Table(title=f"{sweep.spec.name}: {', '.join(sweep.spec.objectives)} on validation, then test {tested}")
    after = {cell.id: cell.measured_after for cell in sweep.cells}
    named = {*after.values()} != {"rtn"}
    for heading in ("cell", "trials", "value", *(["after"] if named else []), "chosen", "seeds"):
        left = heading in ("cell", "after", "chosen")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    cells = sweep.files.cell_entries()
    read = {cell["id"]: [read_json(sweep.files.run(r).record) for r in cell["finals"].values()] for cell in cells}
    records = {cell: [record for record in found if record] for cell, found in read.items()}
    found = sorted({schema.point(row) for read in records.values() for row in _test_rows(read)})
    points = list({point.key: point for point in found}.values())  # networks have layers of their own
    for point in points:
        heading = f"{point} bit" if isinstance(point.plain, int) else str(point)
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in cells:
        chosen: dict[str, Any] = cell["chosen"] or {"value": None, "params": {}}
        columns = [cell["id"], str(cell["trials"]), _shown(chosen["value"], sweep)]
        columns += [after[cell["id"]]] if named else []
        table.add_row(*columns, *_chosen_and_scores(cell, chosen["params"], records[cell["id"]], points, metric))
    # Piped or narrow output must lose nothing: a column that is cut hides which cell a row is about.
    natural = Console(width=10_000).measure(table).maximum
    Console(width=max(Console().width, natural)).print(table)
    failures = [line for phase in counts.values() for line in phase.failures]
    for line in failures:
        print(f"failed: {line}")
    if failures:
        print(f"logs: {sweep.files.logs}; each run's traceback is in its status.json")
    return 1 if failures else 0


def _test_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those after the deploy method by which the runs were chosen."""
    found = [(row, objective.deploy_of(record["config"])) for record in records for row in record["rows"]]
    return [row for row, deploy in found if (row["split"], row["deploy"]) == ("test", deploy)]


def _shown(value: Any, sweep: OpenSweep) -> str:
    """A chosen trial's objective or objectives; `-` for none."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    return objective.shown(values, sweep.spec.objectives, sweep.spec.metric) or "-"


def _chosen_and_scores(
    cell: dict[str, Any], params: dict[str, Any], records: list[dict[str, Any]], points: list[AnyPoint], metric: Metric
) -> list[str]:
    chosen = ", ".join(f"{name.rpartition('.')[2]} {_short(item)}" for name, item in params.items())
    line = [chosen or "-", f"{len(records)}/{len(cell['seeds'])}"]
    for point in points:
        scores = [schema.score_of(row) for row in _test_rows(records) if schema.point(row).key == point.key]
        mean = metric.scale * sum(scores) / len(scores) if scores else None
        line.append("-" if mean is None else f"{mean:.{max(0, metric.digits - 1)}f}")
    return line


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
