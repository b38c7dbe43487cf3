"""Every method on small networks of tasks other than classification: it trains, goes on after a stop, and deploys."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.core import registry
from harness.core.errors import Stopped
from harness.methods import find
from harness.methods._requirements import FEATURES, lacking
from harness.models import build_model
from harness.training.config import RunConfig, complete, component
from harness.training.run import RunContext, run

#: By task: model, settings of the data set beside its root, input shape and outputs of the data.
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...], int]] = {
    "super_resolution": (
        {"name": "edsr", "blocks": 1, "features": 4},
        {"name": "image_pairs", "patch": 8, "crops": 12, "val": "test"},
        (3, 8, 8),
        2,
    ),
    "language_modelling": (
        {"name": "llama", "layers": 1, "width": 16, "heads": 2, "kv_heads": 1},
        {"name": "text", "context": 8, "windows": 12, "train": "text/train.txt", "test": "text/test.txt"},
        (8,),
        12,
    ),
}
#: What these networks have of what methods may require.
HAS: dict[str, set[str]] = {"super_resolution": set(), "language_modelling": set()}
PAIRS = [
    pytest.param(method, task, marks=pytest.mark.slow)
    for task in TASKS
    for method in registry.names("method")
    if HAS[task].issuperset(find(method).requires)
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "text").mkdir()
    for split in ("train", "test"):
        digits = np.random.default_rng(len(split)).integers(0, 10, 300).cumsum() % 10
        (folder / f"text/{split}.txt").write_text(" ".join(map(str, digits)))
        (folder / split).mkdir()
        rough = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((36, 36), Image.Resampling.BICUBIC).save(folder / split / "image.png")
    return folder


def config(method: str, task: str, root: Path) -> RunConfig:
    model, data, *_ = TASKS[task]
    deploy = ["rtn", *([method] if registry.has_deploy(method) else [])]
    return complete(
        {
            "methods": [{**find(method).tiny_config().model_dump(), "name": method}],
            "target_bit": 3,
            "model": model,
            "data": {**data, "root": str(root)},
            "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
            "deploy": {"bits": [2, 3, "w4a8"], "scale": "recalibrate", "methods": deploy},
            "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_networks_have_what_is_said_here(task: str) -> None:
    model, _, shape, outputs = TASKS[task]
    network = build_model(component("model", model), shape, outputs, seed=0)
    assert {feature for feature in FEATURES if not lacking(network, [feature])} == HAS[task]


@pytest.mark.parametrize(("method", "task"), PAIRS)
def test_a_method_trains_goes_on_and_deploys(method: str, task: str, root: Path, tmp_path: Path) -> None:
    wanted = config(method, task, root)
    whole = run(wanted, tmp_path / "whole")
    for allowed in (2, 3):
        left = iter([False] * allowed)
        with pytest.raises(Stopped):
            run(wanted, tmp_path / "parts", RunContext(should_stop=partial(next, left, True)))
    parts = run(wanted, tmp_path / "parts")
    assert parts["rows"] == whole["rows"]
    points = {(row["bits"], row.get("activations")) for row in whole["rows"]}
    assert {(2, None), (3, None), (4, 8), ("float", None)} <= points
    assert all(0 < row["score"] < 100 for row in whole["rows"])
