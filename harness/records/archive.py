"""`python -m harness.archive pack RUNS/SWEEP --to DIR`: a finished sweep's records in one small file, and back.

An archive is a folder `DIR/SWEEP` with `sweep.json`, `cells.json` and `runs.zip`: each run's configuration, record and
trials, of final runs also the epochs, of failed ones the reason. It is what a repository or a paper's supplement
holds; `analysis/make_figures.py --root DIR` reads it as it is, and `unpack` makes a sweep of it that launch goes on
with: what has a record is not trained again. The same records give the same bytes. Standard library only.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.records.files import read_json, write_json, written_aside

RUNS = "runs.zip"
_OF_THE_SWEEP = ("sweep.json", "cells.json", "code.json")
#: The folders of an absolute path in a text.
_FOLDERS = re.compile(r"(?<![\w.~])~?/(?:[^\s/'\"]+/)+")
_OF_A_RUN = ("config.json", "record.json", "trials.json")
_EPOCHS = "metrics.jsonl"
#: The earliest there is: when a file was packed says nothing.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def is_archive(folder: Path) -> bool:
    """Whether a folder holds a packed sweep, and not one that is carried out there."""
    return (folder / RUNS).is_file() and not (folder / "runs").is_dir()


def refuse_archive(folder: Path) -> None:
    """Raises UserError where a folder holds an archive, which nothing is launched in."""
    if is_archive(folder):
        raise UserError(
            f"{folder} is an archive of a finished sweep, to be read only; "
            f"python -m harness.archive unpack {folder} --to runs makes a sweep of it that can go on"
        )


def runs_of(folder: Path) -> Traversable:
    """The folder of a sweep's run directories, which may stand in its archive. Raises UserError for a damaged one."""
    return zipfile.Path(_opened(folder / RUNS)) if is_archive(folder) else folder / "runs"


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; was all of it copied?") from None


def pack(sweep: Path, to: Path) -> Path:
    """Write the archive of the sweep in a folder to `to`; returns its folder.

    Raises UserError where there is no sweep, where runs are left to do, and where records name absolute paths, which
    would tell everybody who reads them how this machine is arranged.
    """
    cells, spec = read_json(sweep / "cells.json"), read_json(sweep / "sweep.json")
    if cells is None or spec is None or not (sweep / "runs").is_dir():
        raise UserError(f"{sweep} holds no sweep: there should be a sweep.json, a cells.json and a folder runs/")
    if left := _left(sweep, cells["cells"], spec):
        raise UserError(f"{sweep} is not complete: {'; '.join(left)}; launch it again first")
    folder = to / sweep.name
    if folder.resolve() == sweep.resolve():
        raise UserError(f"--to {str(to)!r} is where the sweep itself is; an archive stands in another folder")
    finals = {run_id for cell in cells["cells"] for run_id in cell["finals"].values()}
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / RUNS) as aside, zipfile.ZipFile(aside, "w") as archive:
        for run in sorted((sweep / "runs").iterdir()):
            for name, text in _files(run, run.name in finals):
                entry = zipfile.ZipInfo(f"{run.name}/{name}", _NO_DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, text, compresslevel=9)
    # A database is somebody's own, and its URL tells where it is: what is unpacked has a journal.
    for name, content in (("sweep.json", {**spec, "storage": "journal"}), ("cells.json", cells)):
        write_json(folder / name, content)
    if (code := read_json(sweep / "code.json")) is not None:
        write_json(folder / "code.json", code)
    return folder


def _left(sweep: Path, cells: list[dict[str, Any]], spec: dict[str, Any]) -> list[str]:
    """What a sweep still has to do, in words; a run that failed is over."""
    lines = []
    for cell in cells:
        if cell["trials"] < spec["tune"]["trials"]:
            lines.append(f"{cell['id']} has {cell['trials']} of {spec['tune']['trials']} trials")
        elif cell["chosen"] is not None and {*cell["finals"]} != {str(seed) for seed in spec["final"]["seeds"]}:
            lines.append(f"{cell['id']} has no finals yet")
        for run_id in cell["finals"].values():
            run = sweep / "runs" / run_id
            failed = (read_json(run / "status.json") or {}).get("state") == "failed"
            if not failed and not (run / "record.json").exists():
                lines.append(f"final run {run_id} is not over")
    return lines


def _files(run: Path, final: bool) -> Iterator[tuple[str, bytes]]:
    """What is kept of a run: nothing of one that stands for no trial, or of one that a pruner gave up."""
    record, status = read_json(run / "record.json"), read_json(run / "status.json") or {}
    if record is None and status.get("state") == "failed":
        reason = _FOLDERS.sub(".../", str(status.get("reason")))
        yield "status.json", _json({"state": "failed", "reason": reason})
        yield "trials.json", _json(read_json(run / "trials.json") or [])
    if record is None or not (final or (run / "trials.json").exists()):
        return
    _refuse_paths(run, record["config"])
    for name in _OF_A_RUN:
        if (content := read_json(run / name)) is not None:
            yield name, _json(content)
    if final and (run / _EPOCHS).exists():
        yield _EPOCHS, (run / _EPOCHS).read_bytes()


def _refuse_paths(run: Path, config: dict[str, Any]) -> None:
    for key, value in (("data.root", config["data"].get("root")), ("model.init", config["model"].get("init"))):
        path = str(value or "").removeprefix("checkpoint:")
        if Path(path).is_absolute() or path.startswith("~"):
            raise UserError(
                f"{run}: {key} is {value!r}, a path of this machine alone; launch with a relative one, such as "
                "data/cifar10 (a link may stand there)"
            )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def unpack(archive: Path, to: Path) -> Path:
    """Make a sweep of an archive, in `to`, as if it had been carried out there; returns its folder.

    Raises UserError for what is no archive and where a sweep of that name is there already.
    """
    if not is_archive(archive):
        raise UserError(f"{archive} holds no archive (no {RUNS}); python -m harness.archive pack makes one")
    folder = to / archive.name
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another --to")
    to.mkdir(parents=True, exist_ok=True)
    aside = to / f".{archive.name}.{os.getpid()}"
    try:
        with _opened(archive / RUNS) as packed:
            packed.extractall(aside / "runs")  # (which drops "..", and what would lead elsewhere)
        for run in (aside / "runs").iterdir():
            if (run / "record.json").exists():
                write_json(run / "status.json", {"state": "done"}, flushed=False)
        for name in _OF_THE_SWEEP:
            if (content := read_json(archive / name)) is not None:
                write_json(aside / name, content)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
