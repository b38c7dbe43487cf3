"""Names of components come from the folder, as it is now."""

import os
from pathlib import Path

import pytest

from harness.core import registry


def test_a_file_that_is_added_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "ste.py").touch()
    monkeypatch.setattr(registry, "_HARNESS", str(tmp_path))
    os.utime(folder, ns=(1, 1))
    found = registry.names("method")
    assert found == ["ste"]
    found.append("of the caller")
    for name in ("lsq.py", "base.py", "_helper.py", "README.md"):
        (folder / name).touch()
    assert registry.names("method") == ["lsq", "ste"]
