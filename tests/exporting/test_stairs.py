"""Quantizers of activations whose levels or thresholds are not evenly spaced, as tables that ONNX can hold."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import harness
from harness.exporting import onnx_file
from harness.exporting.network import taken
from harness.exporting.onnx_operators import Stairs
from harness.exporting.stairs import stairs
from harness.quantization import Observed
from harness.quantization.learned_thresholds import LearnedThresholdQuantizer
from harness.quantization.shaped_activations import CompandingActivation, MagnitudeQuantizer

KINDS: dict[str, type[MagnitudeQuantizer]] = {"lcq": CompandingActivation, "aoq": LearnedThresholdQuantizer}


def inputs(signed: bool, *shape: int) -> Tensor:
    found = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 1.5
    return found if signed else found.abs()


def learned(kind: str, bits: int, signed: bool) -> MagnitudeQuantizer:
    """A quantizer with parameters that are not those that it starts with."""
    torch.manual_seed(0)
    one = KINDS[kind](bits).fit(Observed.of(inputs(signed, 4, 50)))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            noise = torch.rand_like(parameter)
            parameter.add_(4 * noise - 2 if name == "log_slopes" else noise)
    assert isinstance(one, MagnitudeQuantizer)
    return one.eval()


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_the_quantizer_to_the_last_bit(kind: str, bits: int, signed: bool) -> None:
    one = learned(kind, bits, signed)
    starts, levels = stairs(one)
    assert len(levels) == len(starts) + 1 == one.high + 1
    assert bool((levels.diff() > 0).all())
    edges = torch.cat([starts, starts.nextafter(torch.zeros(1)), starts.nextafter(torch.full((1,), torch.inf))])
    found = torch.cat([edges, -edges, torch.tensor([0.0, 1e-30, 1e30, torch.inf]), inputs(signed, 500)])
    with torch.no_grad():
        assert torch.equal(Stairs(one)(found), one(found))


@pytest.mark.slow
def test_onnxruntime_computes_the_same(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)).eval()
    calibration = inputs(True, 4, 2, 8, 8)
    deployed = harness.round_to_nearest(model, "w4a4", calibration=[calibration])
    deployed[0].input_quantizer, deployed[3].input_quantizer = learned("lcq", 4, True), learned("aoq", 3, False)
    path = tmp_path / "net.onnx"
    onnx_file.write(path, deployed, taken(deployed, {"0": 4, "3": 4}), calibration[:2], {})
    images = inputs(True, 7, 2, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(onnx_file.Runner(path)(images), deployed(images), rtol=1e-5, atol=1e-5)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert "QuantizeLinear" not in operators
    assert operators.count("GreaterOrEqual") == 3 + 3  # 7 thresholds each
