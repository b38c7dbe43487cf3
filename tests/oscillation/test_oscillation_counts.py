"""The oscillation tracker against hand-written trajectories; the toy model of Nagel et al.

tests/oscillation/test_naive_tracker.py compares it with a naive count of random ones.
"""

from collections.abc import Sequence

import pytest
import torch
from oscillation_common import mlp, state
from torch import nn

from harness import MaxAbsQuantizer, OscillationTracker, attach
from harness.records import schema


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
