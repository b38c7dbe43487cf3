"""The oscillation tracker against hand-written trajectories; the toy model of Nagel et al.

tests/reference/test_naive_tracker.py compares it with a naive count of random ones.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from harness import LSQQuantizer, MaxAbsQuantizer, OscillationRegularizer, OscillationTracker, attach, schema
from harness.errors import UserError


def follow(trajectories: Sequence[Sequence[int]], bits: int = 8, momentum: float = 0.01) -> OscillationTracker:
    """A tracker that has seen each weight take the codes of its trajectory; the step is 1 throughout."""
    high = 2 ** (bits - 1) - 1
    layer = nn.Linear(len(trajectories) + 1, 1, bias=False)

    def put(step: int) -> None:
        codes = [float(trajectory[step]) for trajectory in trajectories]
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[float(high), *codes]]))  # the first weight keeps the step at 1

    put(0)
    tracker = OscillationTracker(nn.Sequential(layer), bits, momentum=momentum)
    for step in range(1, len(trajectories[0])):
        put(step)
        tracker.update()
    return tracker


#: codes of one weight, flips and oscillations, counted by hand
BY_HAND = [
    ([0, 0, 0, 0], 0, 0),
    ([0, 1, 1, 1], 1, 0),  # the first change never counts
    ([0, 1, 0, 1], 3, 2),
    ([0, -1, 0, -1], 3, 2),
    ([0, 1, 2, 3], 3, 0),  # always upwards
    ([0, 1, 1, 1, 0], 2, 1),  # after a pause, against the last change
    ([0, 1, 1, 2, 2, 1], 3, 1),  # the pause in between, then upwards again: no oscillation; then back: one
    ([3, -2, 3, 3, -1], 3, 2),  # jumps over several codes count once
    ([-127, 127, -127, 127], 3, 2),  # 254 apart, and back
    ([127, -127, -126, -127], 3, 2),
    ([0, 2, 1, 1, 1, 1, 0, 1], 4, 2),  # up, down (1), down, up (2)
]


@pytest.mark.parametrize(("trajectory", "flips", "oscillations"), BY_HAND)
def test_counts_by_hand(trajectory: list[int], flips: int, oscillations: int) -> None:
    tracker = follow([trajectory])
    metrics = tracker.metrics()
    assert metrics[schema.FLIPS_PER_WEIGHT] * 2 == flips, "two weights, one of which stays"
    assert metrics[schema.OSCILLATIONS_PER_WEIGHT] * 2 == oscillations


def test_frequency_by_hand() -> None:
    # oscillations at steps 2, 3 and 5 of 6, momentum 1/4
    tracker = follow([[0, 1, 0, 1, 1, 0, 0]], momentum=0.25)
    frequency = 0.0
    for oscillates in (0, 1, 1, 0, 1, 0):
        frequency = 0.25 * oscillates + 0.75 * frequency
    # fp16 holds 11 bits: each of six updates may be off by 2^-11 of the value
    assert float(tracker.frequencies()["0"][0, 1]) == pytest.approx(frequency, rel=6 * 2**-11)
    assert float(tracker.frequencies()["0"][0, 0]) == 0
    metrics = tracker.metrics()
    assert metrics[schema.FREQUENCY] == metrics["osc_layers/0"] == pytest.approx(frequency / 2, rel=6 * 2**-11)
    assert metrics[schema.OSCILLATING_FRACTION] == 0.5


def test_a_long_run_at_the_default_momentum() -> None:
    """fp16 must not stall the average: a weight that oscillates at every other step sits near 1/2."""
    tracker = follow([[0, 1, 1, 0] * 200, [0, 1] * 400, [0] * 800])
    half, always, never = tracker.frequencies()["0"][0, 1:].tolist()
    assert half == pytest.approx(0.5, abs=0.02)
    # fp16 holds 11 bits: an increment of 0.01 (1 - f) is lost once it is below half the last one, above 0.976
    assert always == pytest.approx(1.0, abs=0.025)
    assert never == 0


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, tracker: OscillationTracker, steps: int, evaluate: bool = False) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        model.train()
        inputs = torch.randn(16, 6, generator=generator)
        model.zero_grad()
        model(inputs).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.02 * parameter.grad
        tracker.update()
        if evaluate:
            model.eval()
            for _ in range(3):
                model(inputs)


def state(tracker: OscillationTracker) -> list[Tensor]:
    return [tensor for layer in tracker.state_dict().values() for tensor in layer.values()]


@pytest.mark.parametrize("filled", [False, True])
def test_forward_passes_leave_it_unchanged(filled: bool) -> None:
    states = []
    for evaluate in (False, True):
        torch.manual_seed(0)
        model = mlp()
        if filled:
            attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
        tracker = OscillationTracker(model, 3)
        train(model, tracker, 30, evaluate)
        assert tracker.metrics(reset=False)[schema.FLIPS_PER_WEIGHT] > 0
        states.append(state(tracker))
    for plain, evaluated in zip(*states, strict=True):
        assert torch.equal(plain, evaluated)


def test_watching_changes_neither_the_model_nor_its_random_draws() -> None:
    torch.manual_seed(0)
    model = mlp()
    before, draws = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    tracker = OscillationTracker(model, 3)
    tracker.update()
    tracker.metrics()
    assert list(model.state_dict()) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert type(model[0]) is nn.Linear
    assert torch.equal(torch.get_rng_state(), draws)


def test_state_dict_goes_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(0)
    model = mlp()
    tracker = OscillationTracker(model, 2)
    train(model, tracker, 20)
    saved, weights = tracker.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}
    train(model, tracker, 20)
    fresh = mlp()
    fresh.load_state_dict(weights)
    resumed = OscillationTracker(fresh, 2)
    resumed.load_state_dict(saved)
    train(fresh, resumed, 20)
    for one, other in zip(state(tracker), state(resumed), strict=True):
        assert torch.equal(one, other)
    assert tracker.metrics() == resumed.metrics()
    with pytest.raises(KeyError):
        resumed.load_state_dict({})


def test_metrics_begin_a_new_period_but_keep_the_average() -> None:
    tracker = follow([[0, 1, 0, 1]])
    first = tracker.metrics(reset=False)
    assert tracker.metrics() == first
    second = tracker.metrics()
    assert second[schema.FLIPS_PER_WEIGHT] == second[schema.OSCILLATIONS_PER_WEIGHT] == 0
    assert second[schema.FREQUENCY] == first[schema.FREQUENCY] > 0


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


@pytest.mark.parametrize("learning_rate", [0.003, 0.03, 0.3])
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
    for _ in range(length):
        code = tracker.state_dict()["0"]["code"]
        mean += steps(1) / length
        counted += tracker.state_dict()["0"]["code"] != code  # all changes reverse the last: a cycle of two codes
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
