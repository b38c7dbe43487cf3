"""The compiled library is kept once and whole: damage, folders that cannot be used, and failing compilers."""

import functools
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
from locked_folder import locked
from torch import nn

from harness import OscillationRegularizer, OscillationTracker
from harness.kernels import compiler, library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def of_a_new_process() -> tuple[bool, bool, bool]:
    """As in a new process: whether the library is there, whether a warning is given, and whether all works."""
    with patch.object(library, "library", functools.cache(library.library.__wrapped__)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            there = library.library() is not None
        model = nn.Sequential(nn.Linear(4, 4))
        OscillationTracker(model, 3).update()
        return there, bool(said), float(OscillationRegularizer(model, 3, 1.0).add_gradient()) != 0


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which is not there yet."""
    library.library()  # this process' own comes from elsewhere
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows with each compilation, which copies the library of this process."""
    loaded = library.library()
    assert loaded is not None
    content, found = Path(loaded._name).read_bytes(), []

    def compile_quickly(_: str, path: Path) -> None:
        path.write_bytes(content)
        found.append(path)

    monkeypatch.setattr(compiler, "_compile", compile_quickly)
    return found


@pytest.mark.slow
def test_it_is_compiled_once_and_kept(kept: Path) -> None:
    program = "import sys; from harness.kernels.library import library; sys.exit(library() is None)"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)
    (file,) = kept.iterdir()
    then = file.stat().st_mtime_ns
    assert of_a_new_process() == (True, False, True)
    assert [path.stat().st_mtime_ns for path in kept.iterdir()] == [then]


@pytest.mark.parametrize("damage", ["empty", "cut", "cut late", "changed"])
def test_a_library_that_is_not_whole_is_made_again(kept: Path, compiled: list[Path], damage: str) -> None:
    """One that was cut late can be loaded, and ends the process when it is used."""
    assert of_a_new_process() == (True, False, True)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    written = {"empty": b"", "cut": whole[:5000], "cut late": whole[:-4096], "changed": whole[:-1] + b"x"}
    file.unlink()  # a loaded library is its file: one in use must not change
    file.write_bytes(written[damage])
    for _ in range(2):
        assert of_a_new_process() == (True, False, True)
    assert len(compiled) == 2
    assert [path.read_bytes() for path in kept.iterdir()] == [whole]


def test_a_library_that_cannot_be_loaded_even_anew_is_reported(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_compile", lambda _, path: path.write_bytes(b"no library"))
    for _ in range(2):
        assert of_a_new_process() == (False, True, True)


@pytest.mark.parametrize("where", ["under a file", "name too long", "no home"])
def test_without_a_cache_folder_every_process_compiles(
    where: str, kept: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept.parent / "file").write_text("")
    unusable = {"under a file": "file/cache", "name too long": "x" * 300, "no home": ""}
    monkeypatch.setenv("HARNESS_CACHE", str(kept.parent / unusable[where]))
    if where == "no home":
        monkeypatch.setenv("HARNESS_CACHE", "~no-such-user/cache")
    for _ in range(2):
        assert of_a_new_process() == (True, True, True)
    assert len(compiled) == 2


def test_a_cache_folder_that_may_not_be_entered(kept: Path, compiled: list[Path]) -> None:
    assert of_a_new_process() == (True, False, True)
    with locked(kept):
        assert of_a_new_process() == (True, True, True)
    assert len(compiled) == 2


def test_without_a_compiler_all_works_by_plain_operations(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(kept.parent))
    assert of_a_new_process() == (False, False, True)


def test_a_compiler_that_fails_is_reported(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = kept.parent / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert of_a_new_process() == (False, True, True)
