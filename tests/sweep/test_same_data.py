"""A sweep's runs all see the same data, wherever `data.root` points to later."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from cli_sweep import edited
from commands import run_here
from PIL import Image

from harness.core.errors import UserError
from harness.records.files import read_json
from harness.records.sweep_directory import SweepDirectory
from harness.sweep import same_data
from harness.training.config import complete_but_methods


def images(root: Path, shade: int) -> Path:
    for number, name in enumerate(f"{split}/{label}" for split in ("train", "val", "test") for label in "ab"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (shade, number, 0)).save(root / name / "1.png")
    return root


class Launcher:
    """A sweep of one final of a tiny network on images in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, SweepDirectory(folder / "runs" / "small")
        edits = {
            "base/data": {"name": "image_folder", "root": str(images(folder / "old", 10))},
            "base/runtime": {"wandb": "off", "device": "cpu", "threads": 1},
            "cells": [{"methods": "none", "set": {"watch_bit": 2}}],
            "tune/trials": 0,
        }
        self.file = folder / "sweep.yaml"
        self.file.write_text(yaml.safe_dump(edited(edits)))

    def __call__(self, *replaced: str) -> tuple[int, str]:
        sets = [part for each in replaced for part in ("--set", each)]
        options = ("--root", self.folder / "runs", "--cluster", "debug")
        ended = run_here("harness.launch", self.file, *options, *sets, cwd=self.folder)
        return ended.returncode, ended.stdout + ended.stderr

    def digests(self) -> list[str]:
        found = [read_json(run / "record.json") for run in self.files.runs_named()]
        return [record["provenance"]["data_digest"] for record in found if record]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return Launcher(tmp_path)


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_launch_with_other_data_is_refused(version: str, launch: Launcher) -> None:
    assert launch()[0] == 0
    (digest,) = launch.digests()
    (entry,) = json.loads(launch.files.data.read_text())
    assert (entry["digest"], entry["root"]) == (digest, str(launch.folder / "old"))
    if version == "earlier":
        launch.files.data.unlink()
    images(launch.folder / "new", 20)
    journal = launch.files.journal.read_bytes()
    status, said = launch("base.data.root=new", "final.seeds=[0, 1]")
    assert status == 2
    assert (
        f"data.root: the runs of {launch.files.path} were made with data of digest {digest}, and data.root new" in said
    )
    assert f"go back to data.root {launch.folder / 'old'}, or give the sweep another `name:` (or --root)" in said
    assert launch.files.journal.read_bytes() == journal, "nothing is queued"
    (launch.folder / "old").rename(launch.folder / "moved")
    assert launch("base.data.root=moved", "final.seeds=[0, 1]")[0] == 0
    assert launch.digests() == [digest] * 2


def test_files_that_changed_are_other_data(launch: Launcher) -> None:
    assert launch()[0] == 0
    Image.new("RGB", (4, 4), (99, 99, 99)).save(launch.folder / "old/train/a/1.png")
    status, said = launch("final.seeds=[0, 1]")
    assert status == 2
    assert "put back the files as they were" in said


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_run_that_reads_other_data_fails_and_is_not_recorded(version: str, launch: Launcher) -> None:
    assert launch()[0] == 0
    (digest,) = launch.digests()
    if version == "earlier":
        launch.files.data.unlink()
    images(launch.folder / "new", 20)
    with patch("harness.cli.preflight.refuse_other"):  # as on a node whose files differ from those of the launch
        said = launch("base.data.root=new", "final.seeds=[0, 1]")[1]
    assert f"were made with data of digest {digest}, and data.root new has" in said
    assert launch.digests() == [digest]
    assert json.loads(launch.files.data.read_text())[0]["digest"] == digest


def test_what_kept_nothing_binds_nobody(launch: Launcher) -> None:
    assert launch()[0] == 0
    for path in launch.files.runs.rglob("record.json"):
        path.unlink()
    images(launch.folder / "new", 20)
    checkpoint = launch.files.run(launch.files.runs_named()[0].name).checkpoint
    checkpoint.touch()
    assert launch("base.data.root=new")[0] == 2, "a run may go on from it"
    checkpoint.unlink()
    assert launch("base.data.root=new")[0] == 0


def test_each_data_set_has_a_digest_of_its_own(tmp_path: Path) -> None:
    files = SweepDirectory(tmp_path)
    raw = {**edited({})["base"], "methods": [{"name": "none"}], "watch_bit": 2, "seed": 0, "phase": "final"}
    one, other = (complete_but_methods({**raw, "data": {"name": "digits", "val_fraction": at}}) for at in (0.1, 0.2))
    for config, digest in ((one, "1"), (other, "2"), (one, "1")):
        same_data.keep(files, config, digest)
    assert len(json.loads(files.data.read_text())) == 2
    with pytest.raises(UserError, match=r"data.name: digits: the runs .* digest 2, and here it has 1: it comes with"):
        same_data.keep(files, other, "1")
