"""Write results so that each can be traced and made again: same records, same bytes."""

import hashlib
import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.series import Group

_PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "seaborn")


def describe(group: Group, command: str, frame: pd.DataFrame, notes: Iterable[str]) -> dict[str, Any]:
    """Where the numbers of a figure come from. No date: a second run must write the same bytes."""
    finals = group.finals
    provenances = [final.record["provenance"] for final in finals]
    packages: dict[str, set[str]] = {}
    for provenance in provenances:
        for name, number in (provenance.get("packages") or {}).items():
            packages.setdefault(name, set()).add(str(number))
    commits = {json.dumps(provenance.get("git"), sort_keys=True) for provenance in provenances}
    return {
        "sweep": group.sweep,
        "model": group.model,
        "data": group.data,
        "command": command,
        "points_sha256": hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest(),
        "runs": {one.label: {str(final.seed): final.run_id for final in one.finals} for one in group.series},
        "git": [json.loads(commit) for commit in sorted(commits)],
        "numerics_versions": sorted({str(p.get("numerics_version")) for p in provenances}),
        "data_digests": sorted({str(p.get("data_digest")) for p in provenances}),
        "packages_of_the_runs": {name: sorted(found) for name, found in sorted(packages.items())},
        "packages_of_the_analysis": {name: version(name) for name in _PACKAGES},
        "missing": [vars(missing) for missing in group.missing],
        "corrupt_records": list(group.corrupt),
        "notes": [*group.notes, *notes],
    }


def write_text(path: Path, text: str) -> Path:
    """Write aside, then rename: a paper that is being built never sees half a file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    return write_text(path, frame.to_csv(index=False))


def write_json(path: Path, content: dict[str, Any]) -> Path:
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_figure(stem: Path, figure: Figure, subject: str) -> list[Path]:
    """`stem`.pdf and .png, without the date that would make two runs differ."""
    paths = []
    for suffix, metadata in (
        (".pdf", {"CreationDate": None, "Subject": subject}),
        (".png", {"Description": subject}),
    ):
        path = stem.with_name(stem.name + suffix)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(aside, format=suffix[1:], metadata=metadata)
        aside.replace(path)
        paths.append(path)
    return paths
