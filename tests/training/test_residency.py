"""Where images are kept changes nothing of a run but its configuration's words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.training.config import complete
from harness.training.run import run


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of three classes."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 3)):
        for name in ("cat", "dog", "eel"):
            for index in range(count):
                path = tmp_path / "photos" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (10, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def carried_out(root: Path, directory: Path, residency: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record without its times, and the metrics."""
    data = {"name": "image_folder", "root": str(root), "residency": residency, "resize": 8}
    config = complete(
        {
            "methods": ["lsq"],
            "target_bit": "w4a4",
            "model": {"name": "mlp5", "width": 4},
            "data": {**data, "augment": {"crop_padding": 1, "flip": True}},
            "train": {"epochs": 2, "batch_size": 5, "precision": "fp32"},
            "activations": {"calibration_batches": 2},
            "deploy": {"bits": [3, "w4a4"], "scale": "recalibrate"},
            "runtime": {"device": "cpu", "wandb": "off", "eval_batch_size": 4},
        }
    )
    record = run(config, directory)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    kept = {key: each for key, each in record.items() if key not in ("config", "provenance", "deployments")}
    timeless = [{key: each for key, each in line.items() if not key.startswith("time")} for line in lines]
    return {**kept, "data": record["provenance"]["data_digest"]}, timeless


def test_records_are_equal_under_every_residency(photos: Path, tmp_path: Path) -> None:
    found = {each: carried_out(photos, tmp_path / each, each) for each in ("auto", "device", "host", "disk")}
    assert list((tmp_path / "cache").glob("*.u8"))
    for residency, one in found.items():
        assert one == found["device"], residency
    assert "codes_sha256" in json.dumps(found["disk"])
