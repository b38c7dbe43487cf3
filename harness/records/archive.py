"""Packs a finished sweep's records into one small file, and unpacks them: see harness/archive.py."""

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
from harness.records.files import read_json, write_bytes, write_json, written_aside
from harness.records.run_directory import RECORD, RunDirectory
from harness.records.sweep_directory import SweepDirectory

#: The folders of an absolute path in a text.
_FOLDERS = re.compile(r"(?<![\w.~])~?/(?:[^\s/'\"]+/)+")
#: The earliest date of the format, so that the same records give the same bytes.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def is_archive(folder: Path) -> bool:
    """Whether a folder holds a packed sweep, not one that runs there."""
    files = SweepDirectory(folder)
    return files.archive.is_file() and not files.runs.is_dir()


def refuse_archive(folder: Path) -> None:
    """Raises UserError for the folder of an archive: nothing can be launched there."""
    if is_archive(folder):
        raise UserError(
            f"{folder} is an archive of a finished sweep, to be read only; "
            f"python -m harness.archive unpack {folder} --to runs makes a sweep of it that can go on"
        )


def runs_of(folder: Path) -> Traversable:
    """The folder of a sweep's run directories, which may be in its archive. Raises UserError for a damaged one."""
    files = SweepDirectory(folder)
    return zipfile.Path(_opened(files.archive)) if is_archive(folder) else files.runs


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; was all of it copied?") from None


def pack(sweep: Path, to: Path, unfinished: bool = False) -> Path:
    """Write the archive of the sweep in a folder to `to`; returns its folder.

    unfinished: also of a sweep with runs left to do, whose workers may be running. The archive then holds the queue's
    journal too, so that another machine goes on where this one was; checkpoints, which are large, stay behind.

    Raises UserError where there is no sweep, where runs are left to do, and where records name absolute paths, which
    would publish the folders of this machine.
    """
    files = SweepDirectory(sweep)
    journal = whole_lines(files.journal) if unfinished else b""  # before the records: what it calls done has one
    cells, spec = read_json(files.cells), read_json(files.sweep)
    if cells is None or spec is None or not files.runs.is_dir():
        raise UserError(f"{sweep} holds no sweep: there should be a sweep.json, a cells.json and a folder runs/")
    if not unfinished and (left := _left(files, cells["cells"], spec)):
        raise UserError(f"{sweep} is not complete: {'; '.join(left)}; launch it again first")
    packed = SweepDirectory(to / sweep.name)
    if packed.path.resolve() == sweep.resolve():
        raise UserError(f"--to {str(to)!r} is where the sweep itself is; write the archive to another folder")
    finals = {run_id for cell in cells["cells"] for run_id in cell["finals"].values()}
    # By which trials were compared, at their end or by a pruner.
    epochs = any(isinstance(each, dict) for each in spec.get("objective", ())) or _has_pruner(spec)
    packed.path.mkdir(parents=True, exist_ok=True)
    with written_aside(packed.archive) as aside, zipfile.ZipFile(aside, "w") as archive:
        for run in files.runs_named():
            for name, text in _files(RunDirectory(run), run.name in finals, epochs):
                entry = zipfile.ZipInfo(f"{run.name}/{name}", _NO_DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, text, compresslevel=9)
    # Not a database's URL, which is private: what is unpacked has a journal.
    write_json(packed.sweep, {**spec, "storage": "journal"})
    write_json(packed.cells, cells)
    if (code := read_json(files.code)) is not None:
        write_json(packed.code, code)
    if journal:
        write_bytes(packed.journal, journal)
    for folder in (files.components, *(RunDirectory(run).components for run in files.runs_named())):
        _copy_components(folder, packed.components)
    return packed.path


def _has_pruner(spec: dict[str, Any]) -> bool:
    return bool((spec.get("pruner") or {}).get("name", "none") != "none")


def pruned_runs(folder: Path) -> int:
    """How many runs of a sweep, or of an archive, the pruner ended."""
    found = 0
    for run in runs_of(folder).iterdir():
        status = read_json(run / "status.json") or {}
        found += status.get("state") == "pruned" and not (run / RECORD).is_file()
    return found


def _copy_components(folder: Path, to: Path) -> None:
    """The files from outside that runs need to be repeated, by names that tell what is in them."""
    for path in sorted(folder.glob("*.py")):
        to.mkdir(exist_ok=True)
        write_bytes(to / path.name, path.read_bytes())


def whole_lines(path: Path) -> bytes:
    """The content of a file of lines that others append to, without a last line that is not whole; may be empty."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _left(files: SweepDirectory, cells: list[dict[str, Any]], spec: dict[str, Any]) -> list[str]:
    """What a sweep still has to do, as text. A failed run counts as over."""
    lines = []
    for cell in cells:
        if cell["trials"] < spec["tune"]["trials"]:
            lines.append(f"{cell['id']} has {cell['trials']} of {spec['tune']['trials']} trials")
        elif cell["chosen"] is not None and {*cell["finals"]} != {str(seed) for seed in spec["final"]["seeds"]}:
            lines.append(f"{cell['id']} has no finals yet")
        for run_id in cell["finals"].values():
            run = files.run(run_id)
            failed = (read_json(run.status) or {}).get("state") == "failed"
            if not failed and not run.record.exists():
                lines.append(f"final run {run_id} is not over")
    return lines


def _files(run: RunDirectory, final: bool, epochs: bool) -> Iterator[tuple[str, bytes]]:
    """The files to keep of a run: none of a run without a trial. epochs: also of trials; of pruned ones in any case."""
    record, status = read_json(run.record), read_json(run.status) or {}
    if record is None and status.get("state") == "pruned" and (trials := read_json(run.trials)):
        yield run.status.name, _json({"state": "pruned"})
        yield run.trials.name, _json(trials)
        if (written := read_json(run.config)) is not None:  # with the epochs: what the pruner compared
            _refuse_paths(run.path, written["config"])
            yield run.config.name, _json(written)
        if run.metrics.exists():
            yield run.metrics.name, run.metrics.read_bytes()
    if record is None and status.get("state") == "failed":
        reason = _FOLDERS.sub(".../", str(status.get("reason")))
        yield run.status.name, _json({"state": "failed", "reason": reason})
        yield run.trials.name, _json(read_json(run.trials) or [])
    if record is None or not (final or run.trials.exists()):
        return
    _refuse_paths(run.path, record["config"])
    for path in (run.config, run.record, run.trials):
        if (content := read_json(path)) is not None:
            yield path.name, _json(content)
    if final and (outcomes := read_json(run.outcomes)) is not None:
        yield run.outcomes.name, _json(outcomes)
    if (final or epochs) and run.metrics.exists():
        yield run.metrics.name, run.metrics.read_bytes()


def _refuse_paths(run: Path, config: dict[str, Any]) -> None:
    for key, value in (("data.root", config["data"].get("root")), ("model.init", config["model"].get("init"))):
        path = str(value or "").removeprefix("checkpoint:")
        if Path(path).is_absolute() or path.startswith("~"):
            raise UserError(
                f"{run}: {key} is {value!r}, a path of this machine alone; launch with a relative one, such as "
                "data/cifar10 (which may be a link)"
            )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def unpack(archive: Path, to: Path) -> Path:
    """Make a sweep of an archive, in `to`, as if it had run there; returns its folder.

    Raises UserError for what is no archive and where a sweep of that name is there already.
    """
    packed, folder = SweepDirectory(archive), to / archive.name
    if not is_archive(archive):
        raise UserError(
            f"{archive} holds no archive (no {packed.archive.name}); python -m harness.archive pack makes one"
        )
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another --to")
    to.mkdir(parents=True, exist_ok=True)
    aside = SweepDirectory(to / f".{archive.name}.{os.getpid()}")
    try:
        aside.runs.mkdir(parents=True)  # there, even where no run is over
        with _opened(packed.archive) as opened:
            opened.extractall(aside.runs)  # (which drops "..", and what would lead elsewhere)
        for run in map(RunDirectory, aside.runs.iterdir()):
            if run.record.exists():
                write_json(run.status, {"state": "done"}, flushed=False)
        for path in (packed.sweep, packed.cells, packed.code):
            if (content := read_json(path)) is not None:
                write_json(aside.path / path.name, content)
        if packed.journal.exists():
            write_bytes(aside.journal, packed.journal.read_bytes())
        _copy_components(packed.components, aside.components)
        aside.path.rename(folder)
    finally:
        shutil.rmtree(aside.path, ignore_errors=True)
    return folder
