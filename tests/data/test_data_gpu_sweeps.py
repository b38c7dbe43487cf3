"""Sweeps that wait for a GPU and for data: their dry run passes on small files in the official formats."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
Writer = Callable[[Path], Path]


@pytest.mark.parametrize("sweep", ["tiny_imagenet_resnet18", "tiny_imagenet_tiny_vit", "finetune_tiny_vit"])
def test_they_are_complete(
    sweep: str, tmp_path: Path, make_tiny_imagenet: Writer, make_official: dict[str, Writer]
) -> None:
    data = tmp_path / "data"
    make_tiny_imagenet(data)
    make_official["cifar10"](data)
    # Of three classes with four images each.
    given = [f"data.root={data}", "data.val_fraction=0.3"]
    command = [sys.executable, "-m", "harness.launch", f"sweeps/{sweep}.yaml", "--dry-run", "--root", str(tmp_path)]
    command += [part for each in given for part in ("--set", each)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "13 cells, 156 trials, 39 finals: 195 runs" in done.stdout
    assert "not checked" not in done.stdout + done.stderr
