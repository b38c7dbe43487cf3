"""`python -m harness.status SWEEP.yaml [--json | --watch]`: how far a sweep is, who works on it, what failed."""

import argparse
import json
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.errors import run_command
from harness.locate import add_arguments, sweep_folder

#: Seconds between two looks with --watch.
WATCH_EVERY_S = 3.0
#: Workers that are gone are shown up to this many, the last ones first.
GONE_SHOWN = 5


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.status", description="How a launched sweep stands.")
    add_arguments(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--watch", action="store_true", help="until the sweep is complete; Ctrl-C ends the watching only")
    options = parser.parse_args(arguments)
    folder = sweep_folder(options.sweep, options.root)
    from harness.standing import standing
    from harness.study import load_sweep

    sweep = load_sweep(folder)
    if options.json:
        print(json.dumps(standing(sweep), indent=1))
        return 0
    if not options.watch:
        _console().print(shown(standing(sweep)))
        return 0
    _watch(lambda: standing(load_sweep(folder)))
    return 0


def _watch(look: Any) -> None:
    console = _console()
    found = look()
    with Live(shown(found), console=console, auto_refresh=False) as live:
        while found["state"] != "complete":
            time.sleep(WATCH_EVERY_S)
            found = look()
            live.update(shown(found), refresh=console.is_terminal)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)  # piped output must not lose a column


def shown(found: dict[str, Any]) -> Group:
    """The report for a reader."""
    head = f"{found['sweep']}: {found['state']}, {found['runs'] - found['left']} of {found['runs']} runs over"
    if found["left"]:
        head += f", {span(found['eta_s'])} left" if found["eta_s"] is not None else ""
    parts: list[Any] = [Text(head, style="bold"), _cells(found["cells"])]
    if found["workers"]:
        parts.append(_workers(found["workers"]))
    for failure in found["failures"]:
        parts.append(Text(f"failed: {failure['run']} ({failure['cell']}, {failure['phase']}): {failure['reason']}"))
        parts.append(Text(f"        log: {failure['log']}"))
    if found["state"] in ("stopped", "cancelled"):
        parts.append(Text("nobody works on it: python -m harness.launch with the same file goes on"))
    if found["failures"]:
        parts.append(Text("python -m harness.retry gives the failed runs another chance"))
    return Group(*parts)


def _cells(cells: list[dict[str, Any]]) -> Table:
    columns = ("cell", "trials", "finals", "waiting", "running", "done", "failed", "pruned", "best", "ETA")
    table = _table(columns)
    for cell in cells:
        best = "-" if cell["best"] is None else " ".join(f"{value:.4f}" for value in cell["best"]["values"])
        counts = [str(cell[key]) for key in ("waiting", "running", "done", "failed", "pruned")]
        done = [f"{cell['trials_done']}/{cell['trials']}", f"{cell['finals_done']}/{cell['finals']}"]
        eta = "-" if cell["eta_s"] is None else span(cell["eta_s"])
        table.add_row(cell["id"], *done, *counts, best, eta)
    return table


def _workers(workers: list[dict[str, Any]]) -> Table:
    here = [worker for worker in workers if worker["state"] in ("running", "pending")]
    gone = [worker for worker in workers if worker not in here]
    table = _table(("worker", "state", "host", "job", "slot", "GPU", "run", "cell", "runs done", "seen"))
    for worker in here + gone[-GONE_SHOWN:]:
        age = "-" if worker["heartbeat_age_s"] is None else f"{span(worker['heartbeat_age_s'])} ago"
        keys = ("name", "state", "host", "job_id", "slot", "gpu", "run", "cell", "finished")
        table.add_row(*("-" if worker[key] is None else str(worker[key]) for key in keys), age)
        if worker["launched_with"]:
            note = f"  runs code {worker['code']}; the sweep was launched with {worker['launched_with']}"
            table.add_row(note, *[""] * (len(keys)))
    if len(gone) > GONE_SHOWN:
        table.caption = f"and {len(gone) - GONE_SHOWN} workers that are gone"
    return table


def _table(columns: tuple[str, ...]) -> Table:
    table = Table()
    for heading in columns:
        left = heading in ("cell", "worker", "state", "host", "job", "slot", "GPU", "run")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    return table


def span(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`: a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    run_command(main)
