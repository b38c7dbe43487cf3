"""Where the numbers of a figure or table come from."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output import as_csv
from analysis.results import Final, Trial
from analysis.series import Group
from harness.records import schema

PACKAGES = ("matplotlib", "numpy", "optuna", "pandas", "scipy", "seaborn", "tueplots")


def describe(groups: Sequence[Group], command: str, frame: pd.DataFrame, notes: Iterable[str]) -> dict[str, Any]:
    """Provenance of the points in `frame`. No date: a second run must write the same bytes.

    A frame with a column `run_id` names its runs itself; any other is made of the finals of all series.
    """
    runs: list[Final | Trial] = []
    for group in groups:
        runs += [*group.finals, *group.trials]
    if "run_id" in frame:
        named = set(frame["run_id"])
        runs = [run for run in runs if run.run_id in named]
        of_runs: dict[str, Any] = {"run_ids": sorted(named)}
    else:
        runs = [run for run in runs if isinstance(run, Final)]
        of_runs = {"groups": [_of_group(group) for group in groups]}
    sweeps = {group.sweep: group for group in groups}  # what is missing is a sweep's, the same in all its groups
    return {
        "command": command,
        "points_sha256": digest(frame),
        **of_runs,
        **of_records([run.record for run in runs]),
        "code_of_the_analysis": code_digest(),
        "packages_of_the_analysis": dict(packages()),
        "missing": [vars(missing) for group in sweeps.values() for missing in group.missing],
        "corrupt_records": [line for group in sweeps.values() for line in group.corrupt],
        "notes": [*(note for group in groups for note in group.notes), *notes],
    }


@cache
def code_digest() -> str:
    """A hash of the files that figures, tables and claims are made by: their commit would change with any other."""
    folder = Path(__file__).parent
    files = [*sorted(folder.rglob("*.py")), folder / "report.html.j2", Path(schema.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


@cache
def packages() -> dict[str, str]:
    """The versions of what figures, tables and claims are made with, by name."""
    return {name: version(name) for name in PACKAGES}


def digest(frame: pd.DataFrame) -> str:
    """A hash of the points as they are written."""
    return hashlib.sha256(as_csv(frame).encode()).hexdigest()


def _of_group(group: Group) -> dict[str, Any]:
    runs = {one.label: {str(final.seed): final.run_id for final in one.finals} for one in group.series}
    return {"sweep": group.sweep, "model": group.model, "data": group.data, "runs": runs}


def of_records(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Code, numerics, data and packages of the runs."""
    provenances = [record["provenance"] for record in records]
    packages: dict[str, set[str]] = {}
    for provenance in provenances:
        for name, number in (provenance.get("packages") or {}).items():
            packages.setdefault(name, set()).add(str(number))
    commits = {json.dumps(provenance.get("git"), sort_keys=True) for provenance in provenances}
    return {
        "git": [json.loads(commit) for commit in sorted(commits)],
        "numerics_versions": sorted({str(p.get("numerics_version")) for p in provenances}),
        "data_digests": sorted({str(p.get("data_digest")) for p in provenances}),
        "packages_of_the_runs": {name: sorted(found) for name, found in sorted(packages.items())},
    }
