"""The study of sweeps/components.md in a folder, and a process that has seen none of its files."""

from pathlib import Path

import pytest
from pages import COMPONENTS, write_files

from harness.core import outside

#: What it takes on a CPU in a moment.
SHORT = ("train.epochs=1", "train.precision=fp32", "data.count=120", "model.width=2", "runtime.threads=1")
SHORT += ("runtime.device=cpu", "runtime.wandb='off'")


def write_study(folder: Path) -> Path:
    """The four files of the page; returns the sweep file."""
    write_files(COMPONENTS, folder)
    return folder / "rings.yaml"


def edit(path: Path, old: str, new: str) -> None:
    """Replace a piece of a file, which must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: what was resolved or looked for before is not known."""
    monkeypatch.setattr(outside, "_known", {})
    monkeypatch.setattr(outside, "_folders", [])
    outside._loaded.cache_clear()
