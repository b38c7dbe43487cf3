"""The tracker against a naive count, one weight and one step at a time."""

import math
from collections.abc import Sequence

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_tracker import Counted, count, threshold_distance
from quantizers_common import lsq_at
from torch import nn

from harness import OscillationTracker
from harness.core.config_base import QuantizerConfig
from harness.quantization.layers import attach
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


def test_the_naive_count_by_hand() -> None:
    assert count([0, 1, 1, 0, -1, 1, 1]) == Counted(4, 2, 0.01 * (0.99**3 + 0.99))
    assert count([0, 1, 2]).oscillations == 0
    assert threshold_distance(5.0, -1, 1) == 4.5


@given(st.lists(st.lists(st.integers(-7, 7), min_size=12, max_size=12), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_any_trajectory_equals_the_naive_count(trajectories: list[list[int]]) -> None:
    tracker = follow(trajectories, bits=4, momentum=0.1)
    expected = [Counted(), *(count(trajectory, 0.1) for trajectory in trajectories)]
    metrics, weights = tracker.metrics(), len(expected)
    assert metrics[schema.FLIPS_PER_WEIGHT] == sum(one.flips for one in expected) / weights
    assert metrics[schema.OSCILLATIONS_PER_WEIGHT] == sum(one.oscillations for one in expected) / weights
    for actual, one in zip(tracker.frequencies()["0"].flatten().tolist(), expected, strict=True):
        assert actual == pytest.approx(one.frequency, rel=12 * 2**-11, abs=1e-6)  # 12 roundings to fp16
    assert metrics[schema.OSCILLATING_FRACTION] == sum(one.frequency > 0.02 for one in expected) / weights


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("options", [QuantizerConfig(), QuantizerConfig(granularity="channel")])
def test_threshold_distance(bits: int, options: QuantizerConfig) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 5).double()
    high = 2 ** (bits - 1) - 1
    tracker = OscillationTracker(nn.Sequential(layer), bits, options)
    measured = tracker.metrics()[schema.THRESHOLD_DISTANCE]
    distances = []
    for row in layer.weight.detach():
        peak = (row if options.granularity == "channel" else layer.weight.detach()).abs().max()
        distances += [threshold_distance(float(value / (peak / high)), -high, high) for value in row]
    assert measured == pytest.approx(sum(distances) / len(distances), rel=1e-12)
    assert 0 <= measured <= 0.5
    counts, edges = tracker.threshold_histogram(), list(schema.THRESHOLD_EDGES)
    assert counts[-1] == 0  # max-abs steps clip nothing
    assert counts[:-1] == numpy.histogram(numpy.minimum(distances, 0.5), edges[:-1])[0].tolist()


def test_clipped_weights_have_a_bin_of_their_own() -> None:
    """Ternary, step 1: 0 and the grid's ends are half a step away from a threshold, 0.98 almost, 1.7 beyond.

    So does one that is not a number: a diverged run says so by its loss, not by a histogram that cannot be made.
    """
    model = nn.Sequential(nn.Linear(7, 1, bias=False))
    attach(model, weight_quantizer=lambda _: lsq_at(1.0, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0, -1.0, 0.98, 0.51, 1.7, math.nan]]))
    counts = OscillationTracker(model, 2).threshold_histogram()
    assert {place: count for place, count in enumerate(counts) if count} == {0: 1, 19: 4, 20: 2}
