"""A full disk, an unusable root, files cut short: a clear word or a recovery, and never a finished run lost."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run_here
from tiny_sweep import RUNS, here, launch, rows, write_sweep

from harness import status
from harness.core.errors import UserError

# A big network for a small disk: 1.6 MB of weights, so a checkpoint of 5 MB.
WIDE = {"width: 16": "width: 256", "final: {seeds: [0, 1]}": "final: {seeds: [0, 1]}\nkeep_best: none"}


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.mark.slow
def test_a_full_disk_is_named_and_what_was_finished_stays(small_disk: Path, tmp_path: Path) -> None:
    sweep, root = write_sweep(tmp_path, **WIDE), small_disk / "runs"
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * 1_000_000)
    ended, output = launch(sweep, root, "--workers", "1")
    assert ended == 2, output
    assert "nothing more can be written" in output
    assert "No space left on device" in output
    assert "launch again" in output
    before = rows(root)
    assert len(before) < RUNS
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    ended, output = launch(sweep, root, "--workers", "1")
    assert ended == 0, output
    assert before.items() <= rows(root).items()
    assert len(rows(root)) == RUNS
    quiet = small_disk / "quiet"  # in memory: each step writes a checkpoint of 5 MB
    assert here(sweep, quiet, "--cluster", "debug")[0] == 0
    assert rows(root) == rows(quiet)
    statuses = [json.loads(path.read_text()) for path in root.glob("tiny/runs/*/status.json")]
    assert all(found["state"] == "done" for found in statuses)


def test_a_disk_that_is_full_from_the_start_is_refused(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "filler").write_bytes(b"0" * 4 * 2**20)
    ended, output = here(write_sweep(tmp_path), small_disk / "runs", "--workers", "1")
    assert ended == 2, output
    assert "No space left on device" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("verb", ["launch", "status", "cancel", "retry"])
def test_a_root_that_is_a_file(tmp_path: Path, verb: str) -> None:
    sweep = write_sweep(tmp_path)
    (tmp_path / "runs").write_text("not a folder")
    answer = run_here(f"harness.{verb}", sweep, "--root", tmp_path / "runs")
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    assert str(tmp_path / "runs") in answer.stderr
    if verb != "launch":  # as typed, without the seconds that launch imports for
        command = [sys.executable, "-m", f"harness.{verb}", str(sweep), "--root", str(tmp_path / "runs")]
        typed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (typed.returncode, typed.stdout, typed.stderr) == (2, answer.stdout, answer.stderr)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_root_that_may_not_be_entered(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir(mode=0o000)
    try:
        ended, output = launch(write_sweep(tmp_path), root)
        assert ended == 2
        assert "Permission denied" in output
    finally:
        root.chmod(0o700)


FILES = ("cells.json", "sweep.json", "code.json", "runs/*/status.json", "runs/*/config.json", "workers/*/status.json")


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep of which everything but one seed is finished, and the rows of all."""
    folder = tmp_path_factory.mktemp("half")
    sweep = write_sweep(folder)
    assert launch(sweep, folder / "whole", "--cluster", "debug")[0] == 0
    assert launch(sweep, folder / "runs", "--cluster", "debug", "--set", "final.seeds=[0]")[0] == 0
    return folder, rows(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", FILES)
def test_files_cut_short_are_written_anew(half_done: tuple[Path, dict[str, Any]], tmp_path: Path, pattern: str) -> None:
    folder, expected = half_done
    subprocess.run(["cp", "-r", str(folder / "runs"), str(tmp_path / "runs")], check=True)
    damaged = list((tmp_path / "runs/tiny").glob(pattern))
    assert damaged
    for path in damaged:
        text = path.read_text()
        path.write_text(text[: len(text) // 2])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    ended, output = launch(folder / "tiny.yaml", tmp_path / "runs", "--cluster", "debug")
    assert ended == 0, output
    assert rows(tmp_path / "runs") == expected
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()), "a finished run was repeated"
    for path in damaged:
        if pattern not in ("runs/*/status.json", "runs/*/config.json", "workers/*/status.json"):
            json.loads(path.read_text())


def test_status_of_a_sweep_whose_file_is_cut_short_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text('{"name": "ti')
    with pytest.raises(UserError, match="launch makes one"):
        status.main([str(folder)])
