"""The control of the oscillation regularizer that keeps its pull on the largest weights and leaves out its push."""

from typing import Any

import pytest
import torch
from config_common import run_id
from torch import nn

from harness import OscillationRegularizer
from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.methods.base import Calibration, Context, Step
from harness.methods.oscillation import Oscillation
from harness.oscillation.regularizer import oscillation_penalty
from harness.quantization import make_quantizer

QUANTIZERS = [QuantizerConfig(), QuantizerConfig(granularity="channel"), QuantizerConfig(range="mse")]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["tensor", "channel", "mse"])
def test_what_the_graph_adds_to_a_detached_scale_and_nothing_else(quantizer: QuantizerConfig) -> None:
    model = network()
    method = Oscillation(
        Oscillation.Config(strength=2.0, direction="scale_only"), Context(target_bit=3, quantizer=quantizer)
    )
    method.prepare(model, Calibration(lambda index: (torch.zeros(0), torch.zeros(0))))
    value = method.after_backward(Step(0, 1, model))
    whole = OscillationRegularizer(network(), 3, 2.0, quantizer).add_gradient()
    torch.testing.assert_close(value, whole, check_dtype=False)
    for layer in (model[0], model[2]):
        weight = layer.weight.detach()
        parts = [
            oscillation_penalty(weight, make_quantizer(quantizer, 3, scale).fit(weight), 2.0)[1]
            for scale in ("graph", "detached")
        ]
        # A difference of fp32 sums of the same terms: an ulp of the larger ones.
        torch.testing.assert_close(layer.weight.grad, parts[0] - parts[1], rtol=1e-4, atol=1e-7)
        dims = tuple(range(1 if quantizer.granularity == "channel" else 0, weight.dim()))
        largest = weight.abs() == weight.abs().amax(dims, keepdim=True)
        assert bool((layer.weight.grad[~largest] == 0).all())
        assert bool((layer.weight.grad[largest] != 0).all())


def settings(**others: Any) -> dict[str, Any]:
    return {"methods": [{"name": "oscillation", "strength": 10.0, **others}]}


def test_it_is_another_run() -> None:
    others = (run_id(**settings()), run_id(**settings(direction="random_sign")))
    assert run_id(**settings(direction="scale_only")) not in others


def test_with_a_detached_scale_nothing_would_be_left() -> None:
    with pytest.raises(UserError, match="direction: scale_only with scale_gradient: detached"):
        run_id(**settings(direction="scale_only", scale_gradient="detached"))
