"""The oscillation tracker against hand-written trajectories; the toy model of Nagel et al.

tests/oscillation/test_naive_tracker.py compares it with a naive count of random ones.
"""

import pytest
import torch
from oscillation_common import mlp, state
from torch import Tensor, nn

from harness import LSQQuantizer, MaxAbsQuantizer, OscillationRegularizer, OscillationTracker, attach
from harness.core.errors import UserError
from harness.records import schema


def test_one_figure_a_layer_and_totals_over_weights() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8)), nn.Conv2d(2, 3, 3))
    tracker = OscillationTracker(model, 3)
    with torch.no_grad():
        for sign in (-1, 1, -1):
            model[1].weight.mul_(sign)
            tracker.update()
    metrics = tracker.metrics()
    assert {key for key in metrics if key.startswith("osc_layers/")} == {"osc_layers/0_0", "osc_layers/1"}
    assert metrics["osc_layers/0_0"] == 0
    weights = 48, 54
    assert metrics[schema.FREQUENCY] == pytest.approx(metrics["osc_layers/1"] * weights[1] / sum(weights), rel=1e-6)
    assert set(metrics) - {"osc_layers/0_0", "osc_layers/1"} == {
        "osc/flips_per_weight",
        "osc/oscillations_per_weight",
        "osc/frequency",
        "osc/oscillating_fraction",
        "osc/threshold_distance",
    }
    assert set(OscillationTracker(model, 3, exclude=["1"]).frequencies()) == {"0.0"}


def test_a_filled_slot_is_watched_on_its_own_codes() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    (layer,) = attach(model, weight_quantizer=lambda layer: LSQQuantizer(4)).values()
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, LSQQuantizer)
    quantizer.learned_step.data.fill_(1.0)
    layer.weight.data = torch.tensor([[3.4], [0.0]])
    tracker = OscillationTracker(model, 2)  # at 2 bits, max-abs would see codes 1 and 0 throughout
    layer.weight.data = torch.tensor([[3.6], [0.0]])
    tracker.update()
    assert tracker.metrics()[schema.FLIPS_PER_WEIGHT] == 0.5
    quantizer.learned_step.data.fill_(2.0)  # the code moves since the step does
    tracker.update()
    assert tracker.metrics()[schema.OSCILLATIONS_PER_WEIGHT] == 0.5


def test_a_weight_transform_comes_first() -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return torch.where(weight.abs() < 1, weight / 2, weight)

    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    (layer,) = attach(model, weight_transform=lambda layer: Halved()).values()
    layer.weight.data = torch.tensor([[1.0], [0.4]])
    tracker = OscillationTracker(model, 2)
    layer.weight.data = torch.tensor([[1.0], [0.8]])  # 0.4 after the transform: still code 0
    tracker.update()
    assert tracker.metrics()[schema.FLIPS_PER_WEIGHT] == 0


def test_a_weight_transform_filled_after_the_tracker_is_seen_too() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0], [0.6]])
    tracker = OscillationTracker(model, 2)
    attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(8))
    tracker.update()
    assert tracker.metrics()[schema.FLIPS_PER_WEIGHT] == 1.0, "codes 1, 1 became 127, 76"


def test_threshold_distance_outside_the_range() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    (layer,) = attach(model, weight_quantizer=lambda layer: LSQQuantizer(2)).values()
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, LSQQuantizer)
    quantizer.learned_step.data.fill_(1.0)
    layer.weight.data = torch.tensor([[5.0], [-0.5]])
    assert OscillationTracker(model, 2).metrics()[schema.THRESHOLD_DISTANCE] == (4.5 + 0.0) / 2


def test_four_bytes_a_weight() -> None:
    tracker = OscillationTracker(nn.Sequential(nn.Linear(500, 400)), 3)
    sizes = [tensor.numel() * tensor.element_size() for tensor in state(tracker)]
    assert sum(sizes) <= 4 * 500 * 400 + 64
    tracker.update()
    assert [tensor.numel() * tensor.element_size() for tensor in state(tracker)] == sizes


@pytest.mark.parametrize("momentum", [0, 1, -0.1, 1.5])
def test_an_impossible_momentum_is_refused(momentum: float) -> None:
    with pytest.raises(UserError, match="momentum"):
        OscillationTracker(mlp(), 3, momentum=momentum)


def test_impossible_bits_are_refused() -> None:
    with pytest.raises(UserError, match="2 to 8"):
        OscillationTracker(mlp(), 1)


@pytest.mark.parametrize("learning_rate", [pytest.param(0.003, marks=pytest.mark.slow), 0.03, 0.3])
def test_toy_model_of_nagel_et_al(learning_rate: float) -> None:
    """L = (q(w) - w*)^2 / 2, straight-through SGD, s = 1: the rate of oscillation is 2 d, d = |w* - q(w*)|."""
    targets = torch.tensor([[0.1], [0.23], [0.4], [0.45], [-0.3], [1.2], [2.35], [0.7], [2.0]], dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, len(targets), bias=False)).double()
    (layer,) = attach(model, weight_quantizer=lambda layer: LSQQuantizer(8)).values()
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, LSQQuantizer)
    quantizer.learned_step = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)
    layer.weight.data = targets + 0.01
    optimizer = torch.optim.SGD([layer.weight], lr=learning_rate)
    tracker = OscillationTracker(model, 8)

    def steps(count: int) -> Tensor:
        total = torch.zeros_like(targets)
        for _ in range(count):
            optimizer.zero_grad()
            quantized = layer.quantized_weight()
            (0.5 * (quantized - targets).square()).sum().backward()
            optimizer.step()
            tracker.update()
            total += quantized.detach()
        return total / count

    steps(round(6 / learning_rate) if learning_rate < 0.3 else 20)  # until the threshold is reached
    before = {key: value.clone() for key, value in tracker.state_dict()["0"].items()}
    counted = torch.zeros_like(targets)
    length, mean = 1500, torch.zeros_like(targets)
    code = before["code"]
    for _ in range(length):
        mean += steps(1) / length
        last, code = code, tracker.state_dict()["0"]["code"]
        counted += code != last  # all changes reverse the last: a cycle of two codes
    expected = 2 * (targets - targets.round()).abs()
    # a count over a window is off by two at most
    torch.testing.assert_close(counted / length, expected, rtol=0, atol=2 / length)
    oscillations = tracker.state_dict()["0"]["oscillations"] - before["oscillations"]
    assert float(oscillations) == pytest.approx(float(expected.sum()) * length, abs=2 * len(targets))
    # the latent weight stays within a step of the optimizer, so the codes' mean is w* to 1 / (rate * steps)
    torch.testing.assert_close(mean, targets, rtol=0, atol=2 / length)


def test_a_model_with_nothing_to_watch_is_refused() -> None:
    with pytest.raises(UserError, match="no linear or convolution layer"):
        OscillationTracker(nn.Sequential(nn.ReLU()), 3)
    with pytest.raises(UserError, match="no trainable linear or convolution layer"):
        OscillationRegularizer(nn.Sequential(nn.ReLU()), 3, strength=1.0)
