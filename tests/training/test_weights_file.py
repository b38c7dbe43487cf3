"""best.safetensors: latent weights and learned steps, and what they are in its metadata."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from training_details_common import config

from harness import LSQQuantizer, attach, round_to_nearest
from harness.models import load_checkpoint
from harness.training import checkpoint
from harness.training.build import build
from harness.training.run import RunContext, run


def about(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == [checkpoint.ABOUT]
    found: dict[str, Any] = json.loads(metadata[checkpoint.ABOUT])
    return found


def test_a_run_says_what_its_weights_are(tmp_path: Path) -> None:
    wanted = config("lsq", train__epochs=1, exclude=["layer1"])
    record = run(wanted, tmp_path)
    found = about(tmp_path / "best.safetensors")
    assert found["methods"] == [dict(entry) for entry in wanted.methods]
    assert found["methods"][0]["name"] == "lsq"
    assert found["target_bit"] == 3
    assert found["layers"] == [f"layer{index}" for index in range(2, 6)]
    assert found["exclude"] == ["layer1"]
    assert found["scale"] == record["config"]["deploy"]["scale"]
    assert found["quantizer"] == record["config"]["quantizer"]
    assert "not rounded" in found["content"]
    # What it says is so: weights are latent, and the library makes of them what the run deployed.
    session = build(wanted)
    state = load_file(tmp_path / "best.safetensors")
    assert len(state["layer2.weight"].unique()) > 7
    model = session.model
    model.load_state_dict(state)
    expected = session.evaluator.deployed(model, 3).state_dict()
    deployed = round_to_nearest(model).state_dict()
    assert len(deployed["layer2.weight"].unique()) <= 7
    assert all(torch.equal(value, expected[name]) for name, value in deployed.items())


def test_a_float_run_says_so(tmp_path: Path) -> None:
    run(config("none", target_bit=None, watch_bit=2, train__epochs=1), tmp_path)
    found = about(tmp_path / "best.safetensors")
    assert found["methods"] == [{"name": "none"}]
    assert found["target_bit"] is None
    assert len(found["layers"]) == 5


def test_no_weights_no_file(tmp_path: Path) -> None:
    run(config("none", target_bit=None, watch_bit=2, train__epochs=1), tmp_path, RunContext(keep_best=False))
    assert not (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize("note", [None, {"methods": ["é"], "target_bit": 3}])
def test_metadata_changes_no_tensor_and_files_without_it_load(tmp_path: Path, note: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3))
    state, paths = model.state_dict(), [tmp_path / f"{index}.safetensors" for index in range(6)]
    for path in paths:
        checkpoint.save_weights(path, state, note)
    assert len({path.read_bytes() for path in paths}) == 1, "the same bytes each time"
    checkpoint.save_weights(tmp_path / "plain.safetensors", state)

    def tensors(path: Path) -> bytes:
        content = path.read_bytes()
        return content[8 + int.from_bytes(content[:8], "little") :]

    assert tensors(paths[0]) == tensors(tmp_path / "plain.safetensors")
    for path in (paths[0], tmp_path / "plain.safetensors"):
        fresh = nn.Sequential(nn.Linear(4, 3))
        load_checkpoint(fresh, path)
        assert torch.equal(fresh[0].weight, model[0].weight)
