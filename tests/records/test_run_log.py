"""A run's own log gets what is printed; the terminal gets it too."""

import os
import sys
from pathlib import Path

import pytest

from harness.records import run_log


def test_what_is_printed_goes_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attempt in (1, 2):
        with run_log.logged(tmp_path / "log.txt", f"attempt {attempt}") as note:
            print("said")
            print("warned", file=sys.stderr)
            note("for the log alone")
    print("not of the run")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].endswith("attempt 1")
    assert lines[1:4] == ["said", "warned", "for the log alone"]
    assert lines[4].endswith("attempt 2")
    assert len(lines) == 8
    captured = capsys.readouterr()
    assert captured.out == "said\nsaid\nnot of the run\n"
    assert captured.err == "warned\nwarned\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink("/dev/full", tmp_path / "log.txt")
    with run_log.logged(tmp_path / "log.txt", "attempt 1") as note:
        print("said")
        note("for the log alone")
    assert capsys.readouterr().out == "said\n"


def test_a_path_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    with run_log.logged(tmp_path / "log.txt", "attempt 1") as note:
        note(os.fsdecode(b"read caf\xe9.png"))
    assert (tmp_path / "log.txt").read_text().splitlines()[1] == r"read caf\udce9.png"
