"""A small legal sweep, edits to it, and the command line it is given to."""

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from commands import run_here

from harness.core.errors import UserError
from harness.launch import main

#: As an edit's value: the key is taken out.
GONE = object()
SEARCH = "cells/0/search"
BASE: dict[str, Any] = {
    "name": "small",
    "base": {
        "data": {"name": "digits"},
        "model": {"name": "mlp5", "width": 8},
        "train": {"epochs": 1},
        "deploy": {"bits": [2, 4], "scale": "recalibrate"},
    },
    "cells": [
        {
            "methods": "ste",
            "grid": {"target_bit": [2, 3]},
            "search": {"train.learning_rate": {"low": 0.0001, "high": 0.01, "log": True}},
        }
    ],
    "tune": {"trials": 2, "seed": 1000},
    "final": {"seeds": [0]},
    "sampler": "random",
}


def edited(edits: dict[str, Any]) -> dict[str, Any]:
    """BASE with values replaced, by path: `cells/0/methods`. A list grows by the place after its last."""
    raw = copy.deepcopy(BASE)
    for path, value in edits.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
        place: Any = raw
        for part in parents:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        if value is GONE:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(value)
        else:
            place[last] = value
    return raw


@dataclass(frozen=True)
class Cli:
    """The launch command in a folder of a test's own."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def file(self, content: dict[str, Any] | str, name: str = "sweep.yaml") -> Path:
        path = self.folder / name
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        return path

    def refusal(self, *arguments: str | Path) -> str:
        """The message of the UserError that a launch in this process ends with; the root must stay untouched."""
        try:
            with patch("harness.cli.launching._start", return_value=0):  # whatever is not refused by now would start
                status = main(self._arguments(arguments))
        except UserError as error:
            assert not self.root.exists(), sorted(self.root.rglob("*"))
            return str(error)
        raise AssertionError(f"accepted, with exit status {status}")

    def accepted(self, *arguments: str | Path) -> None:
        """A dry run of it ends well and leaves nothing behind."""
        assert main([*self._arguments(arguments), "--dry-run"]) == 0
        assert not self.root.exists()

    def run_here(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The command in this process."""
        return run_here("harness.launch", *self._arguments(arguments), cwd=self.folder)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The command as a user types it."""
        command = [sys.executable, "-m", "harness.launch", *self._arguments(arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, timeout=60, check=False)

    def _arguments(self, arguments: tuple[str | Path, ...]) -> list[str]:
        given = [str(argument) for argument in arguments]
        return given if "--root" in given else [*given, "--root", str(self.root)]
