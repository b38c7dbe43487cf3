"""What a GPU compiles: the plain passes as one graph each, traced once, with equal results."""

import torch
from torch import nn

from harness import LSQQuantizer, OscillationRegularizer, OscillationTracker, attach
from harness.knobs import QuantizerKnobs
from harness.oscillation import _advance_all
from harness.regularizer import _add_all


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(40, 30), nn.Linear(30, 20))
    attach(model, exclude=("0", "1"), weight_quantizer=lambda layer: LSQQuantizer(3).fit(layer.weight))
    return model


def test_the_tracker_is_one_graph_traced_once() -> None:
    torch.compiler.reset()
    model = network()
    # The backend only runs what was traced: this is about the tracing, and needs no compiler.
    traced = OscillationTracker(model, 3, fused=False)
    traced._advance_all = torch.compile(_advance_all, backend="eager", fullgraph=True, dynamic=False)
    plain = OscillationTracker(model, 3, fused=False)
    for step in range(8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape) * (-1) ** step)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            traced.update()
        plain.update()
    for name, state in plain.state_dict().items():
        for field, expected in state.items():
            assert torch.equal(traced.state_dict()[name][field], expected), (name, field)
    assert plain.metrics()["osc/flips_per_weight"] > 0


def test_the_regularizer_is_one_graph_traced_once() -> None:
    torch.compiler.reset()
    for knobs in (QuantizerKnobs(), QuantizerKnobs(granularity="channel", range="mse")):
        model = network()
        traced = OscillationRegularizer(model, 3, 2.0, knobs, fused=False)
        traced._add_all = torch.compile(_add_all, backend="eager", fullgraph=True, dynamic=False)
        plain = OscillationRegularizer(model, 3, 2.0, knobs, fused=False)
        for step in range(4):
            gradients = []
            for regularizer in (traced, plain):
                model.zero_grad()
                with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
                    regularizer.add_gradient()
                gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            for one, other in zip(*gradients, strict=True):
                assert torch.equal(one, other)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02)
