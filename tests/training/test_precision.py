"""`train.precision: auto`: which CPUs and which networks train in bf16."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from config_common import GOLDEN, run_id
from torch import nn
from training_details_common import config

from harness.core import yaml_file
from harness.models import build_model
from harness.training.build import build
from harness.training.config import component
from harness.training.precision import choose_precision, gains_by_bf16, multiplications

CPU = torch.device("cpu")
CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
SWEEPS = Path(__file__).parents[2] / "sweeps"


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    monkeypatch.setattr("harness.training.precision._capabilities", lambda: dict.fromkeys(capabilities, True))


def chosen(settings: Mapping[str, Any], shape: tuple[int, int, int], batch: int) -> str:
    model = build_model(component("model", settings), shape, 10, seed=0)
    return choose_precision("auto", CPU, model, torch.zeros(1, *shape), batch)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (("avx2", "avx512_f", "avx512_bf16"), "bf16"),
        (("amx_tile", "amx_bf16"), "bf16"),
        (("neon", "bf16"), "bf16"),
        (("avx2", "avx512_f"), "fp32"),
        (("neon", "dot"), "fp32"),
        ((), "fp32"),
    ],
)
def test_instructions_for_bf16_decide(
    capabilities: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_cpu(monkeypatch, *capabilities)
    assert chosen({"name": "mlp5", "hidden": [256, 128]}, CIFAR, 128) == expected


def test_an_earlier_torch_tells_for_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    for there, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda there=there: there)
        assert chosen({"name": "mlp5"}, CIFAR, 128) == expected


@pytest.mark.parametrize(
    ("settings", "shape", "batch", "expected"),
    [  # measured by tests/benchmarks/precision_cost.py
        ({"name": "resnet18", "width": 16}, CIFAR, 128, "bf16"),
        ({"name": "vit_tiny", "depth": 2}, CIFAR, 128, "bf16"),
        ({"name": "mlp5", "hidden": [256, 128]}, CIFAR, 512, "bf16"),
        ({"name": "mlp5"}, CIFAR, 16, "fp32"),
        ({"name": "mlp5", "width": 256}, DIGITS, 64, "fp32"),
        ({"name": "resnet18", "width": 16}, DIGITS, 128, "fp32"),
        ({"name": "vit_tiny", "width": 32, "depth": 2, "heads": 2, "patch": 4}, DIGITS, 64, "fp32"),
        ({"name": "vit_tiny", "width": 32, "depth": 2, "heads": 2}, CIFAR, 2048, "fp32"),  # layers of 32 inputs
    ],
)
def test_products_decide(
    settings: dict[str, Any], shape: tuple[int, int, int], batch: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_cpu(monkeypatch, "avx512_bf16")
    assert chosen(settings, shape, batch) == expected


def test_the_rule_at_its_edges() -> None:
    assert gains_by_bf16([(64, 2**20)], 64)
    assert not gains_by_bf16([(64, 2**20)], 63)
    assert not gains_by_bf16([(63, 2**30)], 64)
    assert not gains_by_bf16([(9, 101), (64, 299)], 2**26), "depthwise convolutions do more than a quarter"
    assert gains_by_bf16([(9, 100), (64, 300)], 2**26)
    assert not gains_by_bf16([], 128)


def test_multiplications_of_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 25, 7), nn.Dropout()
    )
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    assert multiplications(model, torch.zeros(1, 4, 5, 5)) == [(18, 18 * 6 * 25), (150, 150 * 7)]
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_named_precision_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities in ((), ("avx512_bf16",)):
        on_a_cpu(monkeypatch, *capabilities)
        assert choose_precision("fp32", CPU, nn.Linear(64, 64), torch.zeros(1, 64), 128) == "fp32"


def test_bf16_is_warned_of_only_where_there_are_no_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(64, 64)
    for capabilities in (("avx2",), ("neon",)):
        on_a_cpu(monkeypatch, *capabilities)
        with pytest.warns(UserWarning, match=r"train.precision: bf16 on a CPU without instructions.*auto"):
            assert choose_precision("bf16", CPU, model, torch.zeros(1, 64), 128) == "bf16"
    for capability in ("amx_tile", "avx512_bf16", "bf16"):
        on_a_cpu(monkeypatch, capability)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert choose_precision("bf16", CPU, model, torch.zeros(1, 64), 128) == "bf16"


def test_choosing_changes_no_number_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    named, auto = (build(config("lsq", train__precision=precision)) for precision in ("fp32", "auto"))
    assert auto.precision == "fp32"
    assert all(torch.equal(one, other) for one, other in zip(named.model.parameters(), auto.model.parameters()))
    assert run_id(train__precision="auto") == GOLDEN
    on_a_cpu(monkeypatch)
    assert run_id(train__precision="auto") == GOLDEN, "auto is one run on every machine"


def test_sweep_files_name_their_precision() -> None:
    # These were carried out with auto, which their runs' ids say; the first two are for GPUs.
    before = {"resnet18", "tiny_vit", "resnet18_short", "tiny_vit_short", "resnet18_reduced", "vit_reduced"}
    for path in SWEEPS.glob("*.yaml"):
        if path.stem not in before:
            assert yaml_file.read(path)["base"]["train"].get("precision") in ("fp32", "bf16"), path.name
