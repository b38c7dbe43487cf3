"""Every model through a whole run on real image files: data, method, loop, evaluation at each bit-width, record."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.training.config import complete
from harness.training.precision import multiplies_bf16
from harness.training.run import run

MODELS: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 32},
    "resnet18": {"name": "resnet18", "width": 16},
    "resnet18 with torchvision's stem": {"name": "resnet18", "width": 16, "small_stem": False},
    "vit_tiny": {"name": "vit_tiny", "width": 48, "depth": 2},
    "tiny_vit": {"name": "tiny_vit", "embed_dims": (16, 32, 32, 64), "depths": (1, 1, 1, 1), "drop_path": 0.1},
    "tiny_vit of 5 M weights": {"name": "tiny_vit", "drop_path": 0.1},
    "timm": {"name": "timm:resnet10t"},
}
#: The running statistics of Tiny ViT's many batch norms need more steps than its weights.
EPOCHS = {"tiny_vit": 6, "tiny_vit of 5 M weights": 6}
#: Its own size once, for it takes ten times as long.
RUNS = [
    (model, *how)
    for model in MODELS
    for how in itertools.product(("oscillation", "lsq"), ("fp32", "bf16"))
    if model != "tiny_vit of 5 M weights" or how == ("oscillation", "fp32")
]
CLASSES = ("dark", "light")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around a dark or a light grey, 32 x 32: a few steps must tell them apart."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 16)):
        for level, name in zip((80, 170), CLASSES, strict=True):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(generator.normal(level, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method", "precision"), RUNS)
def test_a_whole_run(
    model: str, method: str, precision: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "bf16" and model == "tiny_vit" and not multiplies_bf16():
        pytest.skip("Tiny ViT in bf16 takes many minutes on a CPU without instructions for it")
    monkeypatch.setenv("HARNESS_CACHE", str(images / "cache"))
    config = complete(
        {
            "methods": method,
            "target_bit": 4,
            "model": MODELS[model],
            "data": {
                "name": "image_folder",
                "root": str(images),
                "val_fraction": 0.2,
                "augment": {"crop_padding": 2, "flip": True},
            },
            "train": {"epochs": EPOCHS.get(model, 3), "batch_size": 16, "learning_rate": 1e-3, "precision": precision},
            "deploy": {"bits": [2, 4, 8], "scale": "keep_range"},
            "runtime": {"wandb": "off", "device": "cpu"},
        }
    )
    record = run(config, tmp_path)
    rows = {row["bits"]: row for row in record["rows"] if row["split"] == "test"}
    assert list(rows) == [2, 4, 8, "float"]
    assert all(row["n"] == 32 for row in rows.values())
    assert record["resolved"]["precision"] == precision
    accuracy = {bits: row["accuracy"] for bits, row in rows.items()}
    if method == "lsq":  # promises its own bit-width alone; the best epoch, the first of equals, is chosen there
        assert accuracy[4] > 0.9, accuracy
    else:
        assert accuracy["float"] > 0.9, accuracy
        assert accuracy[8] > 0.8, accuracy
