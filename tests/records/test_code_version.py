"""The code a record comes from: a change to a file that git does not know yet counts too."""

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.records import code_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed package of one file that the module under test takes for its own."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    folder = tmp_path / "harness"
    folder.mkdir()
    (folder / "provenance.py").write_text("# committed\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(code_version, "_PACKAGE", folder)
    return folder


def version() -> dict[str, object]:
    """The version as it is now, past the cache."""
    return code_version.code_version.__wrapped__()


def test_a_clean_tree(package: Path) -> None:
    found = version()
    assert (found["dirty"], found["diff_hash"]) == (False, None)
    assert len(str(found["sha"])) == 40


def test_edits_of_known_and_unknown_files_change_the_hash(package: Path) -> None:
    hashes = []
    for name, text in (("provenance.py", "# edited\n"), ("new.py", "a = 1\n"), ("new.py", "a = 2\n")):
        (package / name).write_text(text)
        assert version()["dirty"]
        hashes.append(version()["diff_hash"])
    assert len(set(hashes)) == 3


def test_without_git_the_files_tell_versions_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_version, "_PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("a = 1\n")
    first = version()
    assert set(first) == {"source"}
    assert code_version.named(first) == f"files {first['source']}"
    (tmp_path / "a.py").write_text("a = 2\n")
    assert code_version.differs(first, version())
    (tmp_path / "a.py").write_text("a = 1\n")
    assert not code_version.differs(first, version())


def test_a_commit_elsewhere_is_the_same_code(package: Path) -> None:
    first = version()
    (package.parent / "README.md").write_text("text")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["add", "."], [*identity, "commit", "-qm", "second"]):
        subprocess.run(["git", *command], cwd=package.parent, check=True)
    second = version()
    assert first["sha"] != second["sha"]
    assert not code_version.differs(first, second)
    (package / "provenance.py").write_text("# edited\n")
    assert code_version.differs(second, version())
    assert code_version.named(version()) == f"{second['sha'][:7]} (changed: {version()['diff_hash']})"
