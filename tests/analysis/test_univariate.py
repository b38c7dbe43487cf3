"""The univariate model: simulation against analysis, and against the harness's own rounding and tracker."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis import univariate as model
from analysis.figures import univariate_model
from harness.oscillation.tracker import OscillationTracker
from harness.quantization import WeightQuantizer
from harness.quantization.autograd import round_ste

#: d / s: neither rational with a small denominator nor 0 or 1/2.
DISTANCES = (np.arange(20) + 0.37) / 40


@pytest.mark.parametrize("rate", [0.5, 0.1, 1e-3])
@pytest.mark.parametrize("level", [0, 3, -2])
def test_qat_oscillates_at_twice_the_relative_distance_whatever_the_learning_rate(rate: float, level: int) -> None:
    steps = 4000
    for side in (-1, 1):
        targets = level + side * DISTANCES
        start = model.nearest_threshold(targets)
        weights = model.simulate("ste", targets, 0.0, rate, steps, start)
        expected = 2 * model.level_distance(targets)
        assert expected == pytest.approx(2 * DISTANCES)
        # All up-moves less all down-moves are w's net displacement, less than one up and one down move together: in
        # n steps the number of visits to the far level is within 1 of n d / s, and each is two code changes but for
        # those cut by the window's ends. So the count is within 3 of its expectation, over half the steps.
        assert model.oscillation_rate(weights) == pytest.approx(expected, abs=3 / (steps // 2))
        assert model.expected_rate("ste", targets) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.3, 0.01])
def test_at_one_half_the_regularizer_is_qat(rate: float) -> None:
    for start in (-0.4, 0.1, 1.3):
        qat = model.simulate("ste", DISTANCES, 0.0, rate, 2000, start)
        # (w - w*) + (q - w) is q - w* but for the last bit, and an error stays as it is: no step enlarges it.
        assert model.simulate("oscillation", DISTANCES, 0.5, rate, 2000, start) == pytest.approx(qat, abs=1e-12)
    expected = model.expected_rate("oscillation", DISTANCES, 0.5)
    assert expected == pytest.approx(model.expected_rate("ste", DISTANCES))


@pytest.mark.parametrize("strength", [1 / 16, 3 / 16, 3 / 8, 31 / 64])
def test_the_regularizer_oscillates_exactly_within_its_reach(strength: float) -> None:
    rate, steps, threshold = 2.0**-6, 40_000, 2.5
    targets = threshold + strength * np.array(
        [-1.02, -1, -0.98, 0.98, 1, 1.02]
    )  # exact in binary, and so is the boundary
    oscillates = np.array([False, False, True, True, False, False])
    weights = model.simulate("oscillation", targets, strength, rate, steps, threshold + 0.3 * strength)
    assert ((model.oscillation_rate(weights) > 0) == oscillates).all()
    assert ((model.expected_rate("oscillation", targets, strength) > 0) == oscillates).all()
    # Without oscillation w rests where its gradient is 0, (w - w*) + 2 lambda (q - w), with q = q(w*).
    rests = (targets - 2 * strength * model.codes(targets)) / (1 - 2 * strength)
    assert (np.abs(rests - threshold) < 0.5).all()
    assert rests[[1, 4]] == pytest.approx(threshold)
    # What is left after n steps is at most the first distance times (1 - rate (1 - 2 lambda))^n.
    left = (1 - rate * (1 - 2 * strength)) ** steps + 1e-12
    assert weights[-1, ~oscillates] == pytest.approx(rests[~oscillates], abs=left)


@pytest.mark.parametrize("strength", [0.15, 0.3, 0.45, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("rate", [0.03, 0.003])
def test_the_rate_of_the_regularizer_at_small_learning_rates(strength: float, rate: float) -> None:
    steps = 8000
    outside = 0.5 - DISTANCES
    kept = DISTANCES[(outside < 0.97 * strength) & (outside > (strength - 0.5) * rate * strength)]
    weights = model.simulate("oscillation", kept, strength, rate, steps, 0.5)
    expected = 1 - (0.5 - kept) / strength
    # The mean of w is not t but within a move of it; window's ends as for QAT.
    tolerance = 2 * abs(1 - 2 * strength) * rate + 3 / (steps // 2)
    assert model.oscillation_rate(weights) == pytest.approx(expected, abs=tolerance)
    assert model.expected_rate("oscillation", kept, strength) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.5, 0.1, 1e-3])
def test_the_amplitude_of_qat(rate: float) -> None:
    assert model.largest_amplitude("ste", rate) == rate
    found = model.amplitude(model.simulate("ste", DISTANCES, 0.0, rate, 4000, 0.5))
    assert (found <= rate + 1e-15).all()  # an ulp of w or two is what rounding can add
    assert (found >= rate * (1 - DISTANCES) - 1e-15).all()
    for numerator, denominator in ((1, 2), (1, 4), (3, 8), (5, 16)):  # exact in binary, and so is the orbit
        weights = model.simulate("ste", numerator / denominator, 0.0, 2.0**-6, 400, 0.5)
        assert model.amplitude(weights) == 2.0**-6 * (1 - 1 / denominator)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.8, 2.0])
@pytest.mark.parametrize("rate", [0.15, 1e-3])
def test_the_amplitude_of_the_regularizer(strength: float, rate: float) -> None:
    outside = 0.5 - DISTANCES
    targets = DISTANCES[outside < 0.95 * strength]
    weights = model.simulate("oscillation", targets, strength, rate, 8000, 0.5)
    bound = model.largest_amplitude("oscillation", rate, strength)
    assert bound == pytest.approx(2 * strength * rate)
    # Where lr lambda is small, w passes nearly every place between the bounds; else the orbit may be short.
    assert model.amplitude(weights).max() <= bound + 1e-15
    assert model.amplitude(weights).max() > 0.95 * bound


@pytest.mark.parametrize("target", [-1.3, 0.2, 0.5, 2.0])
def test_float_training_passes_thresholds_once_and_settles(target: float) -> None:
    weights = model.simulate("float", target, 0.0, 0.05, 2000, 4.7)
    changes = np.count_nonzero(np.diff(model.codes(weights)))
    assert changes <= abs(np.round(target) - 5)
    assert not model.oscillations(model.codes(weights)).any()
    # 1 - 0.05 a step, until what is left of it rounds away: half an ulp over 0.05.
    assert weights[-1] == pytest.approx(target, abs=1e-14)
    assert model.expected_rate("float", target) == 0
    assert model.largest_amplitude("float", 0.05) == 0


def test_oscillations_by_hand() -> None:
    codes = np.array([0, 0, 1, 1, 0, 0, -1, 3, 3, 3, 2, 1, 1, 2.0])
    #    the first change, up .^     ^ down: 1  ^ down  ^ up: 1     ^ down: 1   ^ up: 1
    assert model.oscillations(codes).tolist() == [bool(int(c)) for c in "0001001001001"]
    both = np.stack([codes, -codes], axis=1)
    assert model.oscillations(both).sum(axis=0).tolist() == [4, 4]


class FixedStep(WeightQuantizer):
    def step(self, weight: Tensor) -> Tensor:
        return torch.tensor(0.5)


def test_counts_are_the_trackers() -> None:
    targets = np.linspace(-2.4, 2.6, 12)
    steps = model.simulate("oscillation", targets, 0.4, 0.2, 300, 0.1).astype(np.float32)
    weights = 0.5 * steps  # FixedStep's
    layer = nn.Linear(12, 1, bias=False)
    layer.weight.data.copy_(torch.from_numpy(weights[:1]))
    tracker = OscillationTracker(nn.Sequential(layer), bits=4)
    (watch,) = tracker._watches.values()
    watch.default = FixedStep(4)
    watch.code.copy_(watch.codes())
    for row in weights[1:]:
        layer.weight.data.copy_(torch.from_numpy(row[None]))
        tracker.update()
    counted = model.oscillations(model.codes(steps)).sum()
    assert counted > 300
    assert tracker.metrics()["osc/oscillations_per_weight"] * 12 == counted


def loss_of(kind: model.Kind, weight: Tensor, target: Tensor, strength: float) -> Tensor:
    """The loss that each kind is trained on, with the harness's straight-through rounding."""
    quantized = round_ste(weight)
    used = quantized if kind == "ste" else weight
    penalty = strength * (quantized**2 - weight**2) if kind == "oscillation" else torch.zeros(())
    return ((used - target) ** 2 / 2 + penalty).sum()


@pytest.mark.parametrize("kind", ["float", "ste", "oscillation"])
def test_a_step_is_autograds_through_the_harness_rounding(kind: model.Kind) -> None:
    rng = np.random.default_rng(3)
    start, target = rng.uniform(-2, 2, 200), rng.uniform(-2, 2, 200)
    weight = torch.tensor(start, requires_grad=True)
    loss_of(kind, weight, torch.tensor(target), 0.7).backward()
    assert weight.grad is not None
    # q^2 - w^2 is worked out in another order: a few ulps of numbers up to 4.
    assert model.gradient(kind, start, target, 0.7) == pytest.approx(weight.grad.numpy(), abs=1e-14)
    after = model.simulate(kind, target, 0.7, 0.1, 1, start)[1]
    torch.optim.SGD([weight], lr=0.1).step()
    assert after == pytest.approx(weight.detach().numpy(), abs=1e-14)


def test_figure_draws_simulation_on_analysis() -> None:
    figure, frame, notes, _ = univariate_model.draw()
    assert [axes.get_title()[:3] for axes in figure.axes] == ["(a)", "(b)", "(c)"]
    assert figure.get_figwidth() == univariate_model.style.venue().page
    assert list(frame.columns) == ["panel", "series", "method", "lambda", "x", "y", "kind"]
    rates = frame[(frame["panel"] == "b") & (frame["kind"] == "simulated")]
    assert set(rates["series"]) == {
        "QAT (straight-through)", "float training", *(f"regularizer, λ = {part}" for part in ("1", "1/2", "1/4")),
    }  # fmt: skip
    lines = frame[frame["kind"] == "analysis"]
    for row in rates.itertuples():
        line = lines[(lines["panel"] == "b") & (lines["series"] == row.series)]
        # As above, at the panel's learning rate and number of steps.
        assert row.y == pytest.approx(np.interp(row.x, line["x"], line["y"]), abs=2 * 0.01 + 3 / 2000), row.series
    for row in frame[(frame["panel"] == "c") & (frame["kind"] == "simulated")].itertuples():
        line = lines[(lines["panel"] == "c") & (lines["series"] == row.series)]
        assert 0.85 < row.y / np.interp(row.x, line["x"], line["y"]) <= 1 + 1e-9, row.series
    assert "0.3090" in notes[0]
    assert frame.equals(univariate_model.draw().frame)
