"""`python -m harness.repeat RUN --root DIR --dir NEW`: carry out a recorded run again and compare the numbers.

RUN is a run's id, or the beginning of it; DIR holds sweeps, or archives of them (harness/archive.py). The run is
repeated in NEW, from its configuration alone. On the same kind of device, with the same packages and threads, every
row is the same to the last digit, and so are the integer codes, of which rows hold a digest. What differs is printed,
and the command ends with status 1.

Where the data are others than those of the record, that is said first: the text of `python_stdlib` is that of the
Python that runs.
The precision is compared next. Where `train.precision: auto` is another one here than it was for the record, that is
said, and the run is repeated in the recorded one: the configuration then names it, and so the new run has another id.
"""

import argparse
import json
import platform
from collections.abc import Mapping
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from harness.core import outside
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.records import schema
from harness.records.archive import runs_of
from harness.records.files import read_json
from harness.records.run_directory import RECORD, RunDirectory
from harness.records.sweep_directory import sweeps_below
from harness.tasks.base import task_of_run
from harness.training.config import RunConfig, complete, component
from harness.training.deploy_entries import name_in_rows
from harness.training.run import RunContext, print_epoch, run

#: Entries of the provenance that may explain a difference.
_MATTERS = ("device", "threads", "numerics_version", "python", "packages", "data_digest")


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status: 1 when a number differs."""
    parser = argparse.ArgumentParser(prog="python -m harness.repeat", description="Carry out a recorded run again.")
    parser.add_argument("run", metavar="RUN", help="its id, or the beginning of it")
    of = "of sweeps or their archives; default: runs"
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help=of)
    parser.add_argument("--dir", type=Path, required=True, metavar="NEW", help="the directory of the new run")
    parser.add_argument("--data-root", type=Path, metavar="PATH", help="where the data is; default: as recorded")
    options = parser.parse_args(arguments)
    if RunDirectory(options.dir).record.exists():
        raise UserError(f"--dir {str(options.dir)!r} holds a finished run; give the new one a directory of its own")
    recorded = read_record(options.run, options.root)
    raw = _as_recorded(recorded)
    if options.data_root:
        raw["data"]["root"] = str(options.data_root)
    config = complete(raw)
    from harness.data import prepare

    if line := other_data(recorded, prepare(component("data set", config.data)).digest):
        print(line, flush=True)
    config = in_recorded_precision(config, recorded)
    outside.keep(RunDirectory(options.dir).components, config.model_dump(mode="json"))
    again = run(config, options.dir, RunContext(partial(print_epoch, config)))
    found = differences(recorded, again)
    print("\n".join(found) or f"run {recorded['run_id']}: all {len(recorded['rows'])} rows are the same")
    return 1 if found else 0


def _as_recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a record, with the bits and deploy methods that `harness.evaluate` added to its rows.

    Without W&B, where the first run has the same name and must stay as it is.
    """
    raw: dict[str, Any] = json.loads(json.dumps(record["config"]))
    rows = record["rows"]
    raw["deploy"]["bits"] = [each.plain for each in sorted(set(map(schema.point, rows))) if not each.is_float]
    entries = {name_in_rows(entry): entry for entry in raw["deploy"]["methods"]}
    baseline = task_of_run(raw).baseline  # its rows are there without being asked for
    deploys = dict.fromkeys(row["deploy"] for row in rows if row["deploy"] != baseline)
    raw["deploy"]["methods"] = [entries.get(name, name) for name in deploys]
    raw["runtime"]["wandb"] = "off"
    return raw


def in_recorded_precision(config: RunConfig, record: Mapping[str, Any]) -> RunConfig:
    """The configuration, with the record's precision in place of an `auto` that is another one here; says so."""
    was = record.get("resolved", {}).get("precision")
    if config.train.precision != "auto" or was is None:
        return config
    from harness.training.build import build

    here = build(config).precision
    if here == was:
        return config
    print(
        f"train.precision: auto was {was} for the record and is {here} here; the run is repeated in {was}", flush=True
    )
    train = config.train.model_copy(update={"precision": was})
    return config.model_copy(update={"train": train})


def other_data(record: Mapping[str, Any], digest: str) -> str:
    """A line that says so where the data are not those of the record; empty where they are."""
    was, python = (record["provenance"].get(name) for name in ("data_digest", "python"))
    if was in (None, digest):
        return ""
    return (
        f"the data are not those of the record (digest {digest} here, {was} there; Python {platform.python_version()} "
        f"here, {python} there): other numbers are to be expected"
    )


def read_record(named: str, root: Path) -> dict[str, Any]:
    """The record of a run, by its id, the beginning of it or its folder. Raises UserError for none and for several."""
    found: dict[str, Traversable] = {}
    named = Path(named).name  # a run's folder is named by its id
    for sweep in sweeps_below(root):
        outside.look_in(sweep.components)
        runs = runs_of(sweep.path)
        for folder in runs.iterdir() if runs.is_dir() else ():
            if folder.name.startswith(named) and (folder / RECORD).is_file():
                found[folder.name] = folder
    if len(found) != 1:
        what = f"could be any of {', '.join(sorted(found))}" if found else "is not there"
        raise UserError(f"--root {str(root)!r}: run {named!r} {what}")
    (folder,) = found.values()
    record = read_json(folder / RECORD)
    if record is None:
        raise UserError(f"{folder / RECORD} cannot be read")
    return dict(record)


def differences(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """The differences between two records of one run, a line each: precision, rows, then those between the machines."""
    rows = {schema.row_key(row): row for row in again["rows"]}
    metric = task_of_run(recorded["config"]).metric
    beside = [each.key for each in metric.beside]
    lines = []
    was, now = (record.get("resolved", {}).get("precision") for record in (recorded, again))
    if was != now:
        lines.append(f"precision: {was} in the record, {now} now")
    for row in recorded["rows"]:
        case = schema.row_key(row)
        other = rows.get(case)
        if other is None:
            lines.append(f"{' '.join(map(str, case))}: not there any more")
        elif any(row[name] != other.get(name) for name in (*schema.scored(metric, 0.0), "loss", *beside)):
            was, now = (
                f"{metric.name} {metric.shown(schema.score_of(each))}, loss {each['loss']:.6f}" for each in (row, other)
            )
            lines.append(f"{' '.join(map(str, case))}: {was} in the record, {now} now")
        elif schema.CODES in row and row[schema.CODES] != other.get(schema.CODES):
            lines.append(f"{' '.join(map(str, case))}: the same {metric.name} and loss, from other integer codes")
    if lines:
        for name in _MATTERS:
            was, now = recorded["provenance"].get(name), again["provenance"].get(name)
            if was != now:
                lines.append(f"{name}: {was} in the record, {now} now")
    return lines


if __name__ == "__main__":
    run_command(main)
