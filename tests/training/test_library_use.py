"""The library in a training loop of one's own: a model and a loop that know nothing of the harness."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from harness import MaxAbsQuantizer, OscillationRegularizer, OscillationTracker, attach, round_to_nearest


class OwnNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 36, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        logits: Tensor = self.head(self.hidden(x.flatten(1)).relu())
        return logits


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


def own_loop(model: nn.Module, extra: Callable[[], object] = lambda: None, epochs: int = 4) -> dict[str, float]:
    """Adam on digits; `extra` between backward and the step. Returns the tracker's figures."""
    images, labels, *_ = digits()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    tracker = OscillationTracker(model, bits=3)
    for epoch in range(epochs):
        for indices in torch.randperm(1000, generator=torch.Generator().manual_seed(epoch)).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[indices]), labels[indices]).backward()
            extra()
            optimizer.step()
            tracker.update()
    return tracker.metrics()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    *_, images, labels = digits()
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def network() -> OwnNetwork:
    torch.manual_seed(0)
    return OwnNetwork()


def test_the_regularizer_in_a_loop_of_ones_own() -> None:
    plain, regularized = network(), network()
    without = own_loop(plain)
    regularizer = OscillationRegularizer(regularized, bits=3, strength=100.0)
    values: list[Tensor] = []
    with_it = own_loop(regularized, lambda: values.append(regularizer.add_gradient()))
    assert all(bool(torch.isfinite(value)) for value in values)
    assert values[0].shape == ()
    assert with_it["osc/frequency"] > 5 * without["osc/frequency"]
    assert with_it["osc/oscillating_fraction"] > 5 * without["osc/oscillating_fraction"]
    assert with_it["osc/threshold_distance"] < 0.85 * without["osc/threshold_distance"]
    assert accuracy(plain) > 0.85
    assert accuracy(regularized) > 0.85, "the network still learns"


def test_rounding_a_trained_network_of_ones_own() -> None:
    model = network()
    own_loop(model, epochs=3)
    before = copy.deepcopy(model.state_dict())
    at = {bits: round_to_nearest(copy.deepcopy(model), bits) for bits in (2, 3, 8)}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for bits, rounded in at.items():
        for name in ("conv", "hidden", "head"):
            assert len(rounded.get_submodule(name).weight.unique()) <= 2**bits - 1  # type: ignore[operator]
    assert list(at[3].state_dict()) == list(before), "a rounded network loads where the float one did"
    assert abs(accuracy(at[8]) - accuracy(model)) < 0.02
    assert accuracy(at[2]) < accuracy(at[8])


def test_quantization_aware_training_in_a_loop_of_ones_own() -> None:
    model = network()
    layers = attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    assert list(layers) == ["conv", "hidden", "head"]
    metrics = own_loop(model)
    assert metrics["osc/frequency"] > 0
    trained = accuracy(model)
    assert trained > 0.85
    assert accuracy(round_to_nearest(copy.deepcopy(model), 3)) == trained, "what was trained is what is deployed"


def test_on_a_part_of_a_network_in_float64_with_a_bare_layer() -> None:
    layer = nn.Linear(4, 4).double()
    regularizer, tracker = OscillationRegularizer(layer, bits=4, strength=1.0), OscillationTracker(layer, bits=4)
    layer(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    regularizer.add_gradient()
    tracker.update()
    assert tracker.metrics()["osc/flips_per_weight"] == 0


@pytest.mark.parametrize("use", [lambda m: OscillationRegularizer(m, 1, 1.0), lambda m: OscillationTracker(m, 9)])
def test_impossible_bits_are_refused(use: Callable[[nn.Module], object]) -> None:
    with pytest.raises(ValueError, match="2 to 8"):
        use(network())


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys, harness; assert 'torch' not in sys.modules\n"
        "from harness import *; assert 'torch' in sys.modules\n"
        "attach, OscillationRegularizer, OscillationTracker, MaxAbsQuantizer, LSQQuantizer, round_to_nearest"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tracker_takes_the_bits_of_the_layers_own_quantizers() -> None:
    trained, given = network(), network()
    for model in (trained, given):
        attach(model, "head", weight_quantizer={"conv": lambda layer: MaxAbsQuantizer(2), "hidden": three_bits})
    own, all_layers = OscillationTracker(trained), OscillationTracker(given, bits=8)
    assert list(own.codes()) == ["conv", "hidden"]
    assert all(torch.equal(codes, all_layers.codes()[name]) for name, codes in own.codes().items())
    own.update()
    with pytest.raises(ValueError, match=r"bits: no layer has a quantizer of its own .*; give bits, 2 to 8"):
        OscillationTracker(network())


def three_bits(layer: nn.Module) -> MaxAbsQuantizer:
    return MaxAbsQuantizer(3)
