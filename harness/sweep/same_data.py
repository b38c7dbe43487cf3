"""Whether a sweep's runs all see the same data: `data.root` may change, and what lies there may not.

data.json in the sweep's folder has the digest of each data set as the first run read it. Of sweeps of earlier versions,
which have no such file, one record of the same data set stands in.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.outside import shown
from harness.data import TaskDataConfig
from harness.records.files import read_json, write_json
from harness.records.run_directory import RunDirectory
from harness.records.sweep_directory import SweepDirectory
from harness.training.config import RunConfig, component


@dataclass(frozen=True)
class _Seen:
    """A data set as a run read it. root: the `data.root` of that run; None: the data come with a package."""

    digest: str
    root: str | None


def refuse_other(files: SweepDirectory, config: TaskDataConfig, digest: Callable[[], str]) -> None:
    """Raise UserError where data are not those of the sweep's runs. For a launch.

    digest: of the data; called only where there is something to compare with.
    """
    _forget_unused(files)
    if seen := _in_file(files, config) or _in_records(files, config):
        _compare(files, config, digest(), seen)


def keep(files: SweepDirectory, config: RunConfig, digest: str) -> None:
    """Note the data of a run that begins, or raise UserError where they are not those of the sweep's runs."""
    data = component("data set", config.data)
    seen = _in_file(files, data)
    if seen is None:
        with files.lock("data"):  # the first of several workers decides
            seen = _in_file(files, data)
            if seen is None:
                seen = _in_records(files, data) or _Seen(digest, None if data.root is None else str(data.root))
                entry = {"data": data.identity(), "root": seen.root, "digest": seen.digest}
                write_json(files.data, [*_entries(files), entry])
    _compare(files, data, digest, seen)


def _entries(files: SweepDirectory) -> list[dict[str, Any]]:
    return list(read_json(files.data) or ())


def _in_file(files: SweepDirectory, data: TaskDataConfig) -> _Seen | None:
    own = _plain(data)
    return next((_Seen(each["digest"], each["root"]) for each in _entries(files) if each["data"] == own), None)


def _in_records(files: SweepDirectory, data: TaskDataConfig) -> _Seen | None:
    """The data of the first record of this data set."""
    own = _plain(data)
    for run in map(RunDirectory, files.runs_named()):
        record = read_json(run.record)
        digest = record and record.get("provenance", {}).get("data_digest")
        if not digest:
            continue
        with suppress(UserError):  # a data set of another version of this code
            if _plain(component("data set", record["config"]["data"])) == own:
                return _Seen(digest, record["config"]["data"].get("root"))
    return None


def _plain(data: TaskDataConfig) -> Any:
    return json.loads(json.dumps(data.identity()))


def _forget_unused(files: SweepDirectory) -> None:
    """Take data.json away where no run, nor a float network to start from, got as far as to keep anything."""
    if files.data.exists() and not any(_kept(files)):
        with files.lock("data"):
            if not files.living_workers():
                files.data.unlink(missing_ok=True)


def _kept(files: SweepDirectory) -> Iterator[bool]:
    for folder in (files.runs, files.pretrained):
        for run in map(RunDirectory, folder.glob("*")):
            yield run.record.exists() or run.checkpoint.exists()


def _compare(files: SweepDirectory, data: TaskDataConfig, digest: str, seen: _Seen) -> None:
    if digest == seen.digest:
        return
    made = f"the runs of {files.path} were made with data of digest {seen.digest}"
    own = "give the sweep another `name:` (or --root)"
    if data.root is None:
        raise UserError(
            f"data.name: {shown(data.name)}: {made}, and here it has {digest}: it comes with another version of Python "
            f"or of a package; use the one of these runs, or {own}"
        )
    if seen.root is None or Path(seen.root) == data.root:
        back = "put back the files as they were, with the packages that read them"
    else:
        back = f"go back to data.root {seen.root}"
    raise UserError(f"data.root: {made}, and data.root {data.root} has {digest}; {back}, or {own}")
