"""The command line, with a folder and a cache of each test's own."""

from pathlib import Path

import pytest
from cli_sweep import Cli


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return Cli(tmp_path)
