"""`python -m harness.evaluate WHERE --bits 5,6 [--deploy NAME ...]`: more rows for finished runs, without training.

A run's weights (best.safetensors) are deployed at further bit-widths, or by further methods, and the rows are added to
its record. Rows that are there stay as they are. The mirror on W&B is not changed.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout

from harness.core import outside, yaml_file
from harness.core.bits import LEGAL_POINTS, BitWidths
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, Written, in_words, point_of
from harness.core.wording import counted
from harness.records import outcomes, schema
from harness.records.code_version import code_version
from harness.records.files import write_json
from harness.records.run_directory import RunDirectory
from harness.records.sweep_directory import SweepDirectory, sweeps_below
from harness.records.weights import no_weights
from harness.tasks.base import task_of_run
from harness.training.deploy_entries import method_of, named_in


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status: 1 when a run could not be evaluated."""
    parser = argparse.ArgumentParser(prog="python -m harness.evaluate", description="More rows for finished runs.")
    parser.add_argument("where", type=Path, metavar="WHERE", help="a run's directory, a sweep's folder, or a root")
    parser.add_argument("--bits", type=_points, metavar="2,3,w4a8", help="default: those that each run was deployed at")
    parser.add_argument("--deploy", action="append", default=[], metavar="NAME", help="a method, or the `as` of one")
    parser.add_argument("--device", help="default: each run's runtime.device")
    options = parser.parse_args(arguments)
    deploys = [named_in(_configs(options.where), name) for name in options.deploy]
    failed = 0
    for folder in finished_runs(options.where):
        try:
            added = add_rows(folder, options.bits, deploys, options.device)
            lines = [*_last_rows(folder, added), *_without_effect(folder, deploys)]
            print(f"{folder.name}: {counted(added, 'row')} added", *lines, sep="\n", flush=True)
        except UserError as error:
            failed += 1
            print(f"{folder.name}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _last_rows(folder: Path, count: int) -> list[str]:
    """A line for each of the last rows of a record that are of the test split."""
    record = RunDirectory(folder).finished()
    metric = task_of_run(record["config"]).metric
    rows = [row for row in record["rows"][len(record["rows"]) - count :] if row["split"] == "test"]
    return [
        f"  test {schema.point(row)!s:>5}  {metric.name} {metric.shown(schema.score_of(row))}  {row['deploy']}"
        for row in rows
    ]


def _without_effect(folder: Path, deploys: Sequence[str]) -> list[str]:
    """A line for each of the methods whose rows are all those of rounding to nearest."""
    rows = {_key(row): row["loss"] for row in RunDirectory(folder).finished()["rows"]}
    lines = []
    for name in deploys:
        own = {key: loss for key, loss in rows.items() if key[1] == name and (key[0], "rtn", key[2]) in rows}
        if own and all(rows[split, "rtn", point] == loss for (split, _, point), loss in own.items()):
            lines.append(f"  {outside.shown(name)} changes nothing in this network: its rows are those of rtn")
    return lines


def _points(text: str) -> tuple[AnyPoint, ...]:
    try:
        return tuple(sorted({point_of(part) for part in yaml_file.parse(f"[{text}]")}))
    except UserError as error:
        why = f": {error}" if "{" in text else f", as 2,3,w4a8 ({LEGAL_POINTS})"
        raise argparse.ArgumentTypeError(f"{text!r} is no list of points{why}") from error


def finished_runs(where: Path) -> list[Path]:
    """The run directories at or below a folder that hold a record and its weights. Raises UserError for none."""
    if not where.is_dir():
        raise UserError(f"{where}: no such folder")
    if not (found := _with_weights(where)):
        raise no_weights(where, "no finished run there has kept its weights")
    return found


def _configs(where: Path) -> Iterator[Mapping[str, Any]]:
    return (RunDirectory(folder).finished()["config"] for folder in _with_weights(where))


def _with_weights(where: Path) -> list[Path]:
    folders = [path for sweep in (SweepDirectory(where), *sweeps_below(where)) for path in sweep.runs_named()]
    runs = [RunDirectory(path) for path in ([where] if RunDirectory(where).record.exists() else sorted(folders))]
    return [run.path for run in runs if run.record.exists() and run.best.exists()]


def add_rows(folder: Path, points: Sequence[Written] | None, deploys: Sequence[str], device: str | None = None) -> int:
    """Add the missing rows of a run at `points` (None: its own), by round-to-nearest and by `deploys`.

    Returns how many. Raises UserError for weights, data or code that do not reproduce the record.
    """
    files = RunDirectory(folder)
    outside.look_near(folder)
    try:
        with files.lock().acquire(timeout=1):
            record = files.finished()
            rows = _missing(record, points, deploys)
            if rows:
                found, costs, of_samples = _evaluated(record, rows, files.best, device)
                note = {"rows": len(found), "deploy": sorted({r["deploy"] for r in found}), "git": code_version()}
                record["rows"] += found
                record["deployments"] = [*record.get("deployments", ()), *costs]
                record["provenance"]["rows_added"] = [*record["provenance"].get("rows_added", ()), note]
                outside.keep(files.components, list(deploys))
                outcomes.add(files, of_samples)
                write_json(files.record, record)
            return len(rows)
    except Timeout:
        raise UserError("a process works on this run; try again later") from None


_Key = tuple[str, str, AnyPoint]  #: Split, deploy method and point of a row.


def _key(row: Mapping[str, Any]) -> _Key:
    return row["split"], row["deploy"], schema.point(row)


def _missing(record: Mapping[str, Any], points: Sequence[Written] | None, deploys: Sequence[str]) -> set[_Key]:
    there = set(map(_key, record["rows"]))
    splits, own = {split for split, _, _ in there}, {point for _, _, point in there}
    asked = {*(own if points is None else map(point_of, points)), BitWidths()}
    named = {point.key: point for point in own}
    for point in asked:
        if named.get(point.key, point) != point:
            raise UserError(f"{point}: its record has a point of that name with other layers; choose another name")
    cases = [(deploy, point) for deploy in ("rtn", *deploys) for point in asked if _serves(record, deploy, point)]
    return {(split, *case) for split in splits for case in cases} - there


def _serves(record: Mapping[str, Any], deploy: str, point: AnyPoint) -> bool:
    from harness.methods import find

    return deploy == "rtn" or find(method_of(record["config"], deploy)).serves(point)


def _evaluated(
    record: Mapping[str, Any], wanted: set[_Key], weights: Path, device: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows, what the deployments took that the record does not know yet, and the outcomes of test rows."""
    from harness.quantization.by_layer import check_layer_points
    from harness.quantization.key_value_points import check_keys_and_values
    from harness.training.recorded import session_of

    session = session_of(record, weights, device)
    config = session.config
    points_asked = [point for _, _, point in wanted]
    check_layer_points(session.model, points_asked, config.exclude, config.quantizer.quantizes_norms)
    check_keys_and_values(session.model, points_asked, config.exclude)
    # Float is always included: every record has it, and it shows whether weights and data are those of the record.
    cases = {(deploy, point) for _, deploy, point in wanted} | {("rtn", BitWidths())}
    deployments = session.evaluator.deployments(session.model, sorted(cases, key=_place), measure=True)
    rows: list[dict[str, Any]] = []
    of_samples: list[dict[str, Any]] = []
    for split in sorted({split for split, _, _ in wanted}, reverse=True):  # val first, as runs write them
        found, outcome = session.evaluator.measured(deployments, record["phase"], split)  # type: ignore[arg-type]
        _compare(record, found)
        rows += [row for row in found if _key(row) in wanted]
        of_samples += [each for each in outcome if split == "test" and _key(each) in wanted]
    known = {(each["deploy"], schema.point(each)) for each in record.get("deployments", ())}
    costs = [each.cost for each in deployments if (each.deploy, each.point) not in known]
    return rows, costs, of_samples


def _place(case: tuple[str, AnyPoint]) -> tuple[bool, str, AnyPoint]:
    """Round-to-nearest first, then by name and point."""
    deploy, point = case
    return deploy != "rtn", deploy, point


def _compare(record: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError for weights that do not reproduce the scores of the record, but for how devices round."""
    metric = task_of_run(record["config"]).metric
    recorded = {_key(row): schema.score_of(row) for row in record["rows"]}
    for row in found:
        before, here = recorded.get(_key(row)), schema.score_of(row)
        if before is not None and abs(before - here) > metric.tolerance:
            where = f"{row['split']} {metric.name} {in_words(schema.point(row))} ({row['deploy']})"
            raise UserError(f"{where} is {here:.4f} here and {before:.4f} in its record; nothing was added")


if __name__ == "__main__":
    run_command(main)
