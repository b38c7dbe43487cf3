"""One weight that learns a linear map: the model in which oscillation can be worked out on paper.

`y = w x` with E[x^2] = 1 learns the slope w* ("target"), so the loss is (w - w*)^2 / 2. The grid is uniform with a
fixed step s, q(w) = s round(w / s), and t is the decision threshold (k + 1/2) s nearest to w*. Rounding has the
straight-through gradient. The gradients by kind (Wenshøj, Pepin, Selvan 2025, arXiv 2502.00490, section 4):

    float        w - w*
    ste          q(w) - w*                              QAT
    oscillation  (w - w*) + 2 lambda (q(w) - w)         the regularizer lambda (q^2 - w^2); lambda 1/2 is QAT

Just below t the last one is -(lambda s + (w* - t)), just above it is lambda s - (w* - t): both push towards t, and w
oscillates around it, if and only if |w* - t| < lambda s. All functions take numbers or arrays that broadcast.
Units: w, w* and t are in units of s, so s is 1 below; learning rates and lambda have none; rates are per step.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["float", "ste", "oscillation"]
Floats = NDArray[np.float64]
Values = float | Floats


def codes(weight: Values) -> Floats:
    """Grid codes `round(w)`, halves to even (as in harness/quantization/grid.py), not clipped; q(w) in units of s."""
    return np.round(np.asarray(weight, float))


def nearest_threshold(target: Values) -> Floats:
    """The decision threshold t nearest to w*; of the two that a grid level lies between, the upper."""
    return np.asarray(np.floor(np.asarray(target, float)) + 0.5)


def level_distance(target: Values) -> Floats:
    """d = |w* - q(w*)|, in [0, 1/2]."""
    return np.abs(target - codes(target))


def gradient(kind: Kind, weight: Values, target: Values, strength: Values) -> Floats:
    """Of the loss by w. strength: lambda, >= 0, of the regularizer alone."""
    weight = np.asarray(weight, float)
    if kind == "float":
        return weight - target
    if kind == "ste":
        return codes(weight) - target
    return (weight - target) + 2 * np.asarray(strength) * (codes(weight) - weight)


def simulate(kind: Kind, target: Values, strength: Values, learning_rate: Values, steps: int, start: Values) -> Floats:
    """Gradient descent in float64: the weight before the first step and after each, shape (steps + 1, ...)."""
    first = np.broadcast_arrays(start, target, strength, learning_rate)[0]
    weights = np.empty((steps + 1, *first.shape))
    weights[0] = first
    for i in range(steps):
        weights[i + 1] = weights[i] - learning_rate * gradient(kind, weights[i], target, strength)
    return weights


def oscillations(codes: Floats) -> NDArray[np.bool_]:
    """Which of T steps oscillate, for codes (T + 1, ...): bool (T, ...).

    As the oscillation tracker counts: a change of the code against the direction of its last change, however long
    ago that was. The first change never counts.
    """
    changes = np.sign(np.diff(codes, axis=0))
    reversals = np.zeros(changes.shape, dtype=bool)
    direction = np.zeros(changes.shape[1:])
    for i, change in enumerate(changes):
        reversals[i] = change * direction < 0
        direction = np.where(change != 0, change, direction)
    return reversals


def oscillation_rate(weights: Floats) -> Floats:
    """Oscillations per step over the second half of a trajectory (T + 1, ...), in [0, 1], shape (...)."""
    events = oscillations(codes(weights))
    return np.asarray(events[len(events) // 2 :].mean(axis=0))


def amplitude(weights: Floats) -> Floats:
    """Highest less lowest weight over the second half of a trajectory (T + 1, ...), shape (...)."""
    return np.asarray(np.ptp(weights[len(weights) // 2 :], axis=0))


def expected_rate(kind: Kind, target: Values, strength: Values = 0.5) -> Floats:
    """Oscillations per step in the long run around the threshold t nearest to w*, in [0, 1].

    QAT: w turns on a circle of length lr s by lr d, so a full cycle takes s / d steps on average and flips twice:
    2 d / s, at any learning rate (Nagel et al. 2022, arXiv 2203.11086, section 2.3). Regularizer: the mean gradient
    is 0, so q is t + (w* - t) / (2 lambda) on average, and w visits the rarer of the two levels for one step at a
    time: 1 - |w* - t| / (lambda s), or 0 where that is negative. At a learning rate lr this is exact for lambda 1/2
    and within 2 |1 - 2 lambda| lr otherwise, but for lambda > 1/2 not where |w* - t| < (lambda - 1/2) lr lambda s:
    there w may stay on either side for two steps, which makes the rate up to a third lower.
    """
    if kind == "float":
        return np.zeros(np.shape(target))
    if kind == "ste":
        return 2 * level_distance(target)
    reach = np.asarray(strength, float)
    outside = np.abs(target - nearest_threshold(target))
    return np.where(outside < reach, 1 - outside / np.where(reach > 0, reach, 1), 0.0)


def largest_amplitude(kind: Kind, learning_rate: Values, strength: Values = 0.5) -> Floats:
    """What the peak-to-peak amplitude of a steady oscillation cannot exceed: the sum of the moves on both sides of t.

    QAT: lr s, and exactly lr s (1 - 1/n) where d / s = m / n in lowest terms, so at least lr (s - d).
    Regularizer: 2 lambda lr s, as long as no move reaches past the levels next to t. Float training: 0.
    """
    factor: dict[Kind, Values] = {"float": 0.0, "ste": 1.0, "oscillation": 2 * np.asarray(strength, float)}
    return np.asarray(learning_rate, float) * factor[kind]
