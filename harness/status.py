"""`python -m harness.status SWEEP.yaml [--json | --watch]`: how far a sweep is, its workers, what failed."""

import json
import time
from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.cli.find import sweep_folder, sweep_parser
from harness.cluster.slurm import NO_ANSWER
from harness.cluster.waiting import never_starts
from harness.core.command import run_command
from harness.core.wording import counted

#: Seconds between two looks with --watch.
WATCH_EVERY_S = 3.0
#: How many ended workers are shown, the last ones.
GONE_SHOWN = 5
#: Columns below which a terminal is narrow.
WIDE = 130
_COUNTS = ("waiting", "running", "done", "failed", "pruned")
_HEADINGS = {"name": "worker", "gpu": "GPU", "rate": "s/epoch", "finished": "done"}


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = sweep_parser("status", "How far a launched sweep is.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--watch", action="store_true", help="until the sweep is complete; Ctrl-C ends the watching only")
    options = parser.parse_args(arguments)
    folder = sweep_folder(options.sweep, options.root)
    from harness.cli.status_report import status_report
    from harness.sweep.queue import load_sweep

    found = status_report(load_sweep(folder))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=160)  # piped output must not lose a column
    if not options.watch:
        console.print(shown(found, console.width >= WIDE))
        return 0
    with Live(shown(found, console.width >= WIDE), console=console, auto_refresh=False) as live:
        while found["left"]:
            time.sleep(WATCH_EVERY_S)
            found = status_report(load_sweep(folder))
            live.update(shown(found, console.width >= WIDE), refresh=console.is_terminal)
    return 0


def shown(found: dict[str, Any], wide: bool = True) -> Group:
    """The report as text and tables. wide=False: for a terminal of 80 columns."""
    totals = {key: sum(cell[key] for cell in found["cells"]) for key in ("done", "failed", "pruned")}
    head = f"{found['sweep']}: {found['state']}, {totals['done']} of {found['runs']} runs done"
    head += "".join(f", {totals[key]} {key}" for key in ("failed", "pruned") if totals[key])
    if found["left"]:
        head += f", {span(found['eta_s'])} left" if found["eta_s"] is not None else ""
    parts: list[Any] = [Text(head, style="bold"), _cells(found["cells"], wide)]
    if found["workers"]:
        parts += [*_workers(found["workers"], wide), *_notes(found["workers"])]
    for cell in found["cells"]:
        if cell["nothing_to_choose"]:
            parts.append(Text(f"failed: {cell['id']}: no trial completed, so there is nothing to choose from"))
    for failure in found["failures"]:
        parts.append(Text(f"failed: {failure['run']} ({failure['cell']}, {failure['phase']}): {failure['reason']}"))
        parts.append(Text(f"        log: {failure['log']}"))
    if lost := found["without_mirror"]:
        first = f"{next(iter(lost))}: {next(iter(lost.values()))}"
        have = "1 run has" if len(lost) == 1 else f"{len(lost)} runs have"
        parts.append(Text(f"W&B: {have} no whole copy there; {first}"))
    if found["state"] in ("stopped", "cancelled"):
        parts.append(Text("no worker is left: python -m harness.launch with the same file goes on"))
    if not found["queue_is_there"]:
        parts.append(Text("the queue is not there; a launch rebuilds it from the records"))
    if found["failures"]:
        parts.append(Text("python -m harness.retry repeats the failed runs"))
    return Group(*parts)


def _notes(workers: list[dict[str, Any]]) -> list[Text]:
    """Notes below the tables: changed code, no answer from Slurm, workers that died before their first run."""
    notes = []
    if any(worker["why"] == NO_ANSWER for worker in workers):
        notes.append("Slurm does not answer: its workers are shown as they were last seen")
    waits = Counter(worker["why"] for worker in workers if worker["state"] == "pending" and never_starts(worker["why"]))
    for why, count in waits.items():
        who = f"{counted(count, 'worker')} will not start ({why})"
        notes.append(f"{who}: {never_starts(why)}; python -m harness.cancel, then launch with another profile")
    for worker in workers:
        if worker["launched_with"]:
            ran, launched = worker["code"], worker["launched_with"]
            notes.append(f"{worker['name']} runs code {ran}; the sweep was launched with {launched}")
    died = [worker for worker in _ended(workers) if worker["state"] in ("lost", "failed") and not worker["finished"]]
    for worker in died[-GONE_SHOWN:]:
        said = worker["reason"] or worker["last_line"] or "it said nothing"
        notes.append(f"{worker['name']} ended before its first run did: {said}")
        notes.append(f"        log: {worker['log']}")
    return [Text(note) for note in notes]


def _cells(cells: list[dict[str, Any]], wide: bool) -> Table:
    counts = [key for key in _COUNTS if wide or any(cell[key] for cell in cells)]
    after = ["after"] if any(cell["measured_after"] != "rtn" for cell in cells) else []
    table = _table(("cell", "trials", "finals", *counts, "best", *after, "ETA"))
    for cell in cells:
        best = "-" if cell["best"] is None else cell["best"]["shown"]
        done = [f"{cell['trials_done']}/{cell['trials']}", f"{cell['finals_done']}/{cell['finals']}"]
        eta = "-" if cell["eta_s"] is None else span(cell["eta_s"])
        value = [best, cell["measured_after"]] if after else [best]
        table.add_row(cell["id"], *done, *(str(cell[key]) for key in counts), *value, eta)
    return table


def _ended(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that ended since the last launch, and not because nothing was left to do."""
    over = ("running", "pending", "done")
    return [worker for worker in workers if worker["state"] not in over and worker["since_last_launch"]]


def _workers(workers: list[dict[str, Any]], wide: bool) -> list[Table | Text]:
    """A table of those that are there or ended before the sweep did, and how many others ended."""
    here = [worker for worker in workers if worker["state"] in ("running", "pending")]
    listed = here + _ended(workers)[-GONE_SHOWN:]
    others = Counter(worker["state"] for worker in workers if worker not in listed)
    count = f"{counted(others.total(), 'further worker')} ended: "
    rest = [Text(count + ", ".join(f"{n} {state}" for state, n in others.items()))] if others else []
    return [_table_of(listed, wide), *rest] if listed else [*rest]


def _table_of(workers: list[dict[str, Any]], wide: bool) -> Table:
    keys: tuple[str, ...] = ("name", "state", "run", "epoch", "rate", "finished")
    if wide:
        keys = ("name", "state", "host", "job", "slot", "gpu", *keys[2:], "seen")
    table = _table(tuple(_HEADINGS.get(key, key) for key in keys))
    for worker in workers:
        age = worker["heartbeat_age_s"]
        job = f"pid {worker['pid']}" if worker["cluster"] == "local" and worker["pid"] else worker["job_id"]
        why = f" ({worker['why']})" if worker["state"] == "pending" and worker["why"] not in (None, NO_ANSWER) else ""
        cells = {**worker, "job": job, "state": worker["state"] + why}
        cells["epoch"] = f"{worker['epoch'] or 0}/{worker['epochs']}" if worker["run"] else None
        cells["rate"] = f"{worker['epoch_s']:.3g}" if worker["run"] and worker["epoch_s"] else None
        cells["seen"] = None if age is None else f"{span(age)} ago"
        table.add_row(*("-" if cells[key] is None else str(cells[key]) for key in keys))
    return table


def _table(columns: tuple[str, ...]) -> Table:
    table = Table()
    for heading in columns:
        left = heading in ("cell", "after", "worker", "state", "host", "job", "slot", "GPU", "run")
        # A number or an id that is broken in two cannot be read, or copied.
        table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=heading != "cell")
    return table


def span(seconds: float) -> str:
    """Seconds as `45 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    run_command(main)
