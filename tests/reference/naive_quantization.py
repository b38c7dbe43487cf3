"""Quantizers in numpy and Python loops; they share no code with the harness."""

import math

import numpy as np


def codes(weight: np.ndarray, step: float, low: int, high: int) -> np.ndarray:
    """Integer codes in the arithmetic of `weight`'s type."""
    return np.clip(np.rint(weight / np.asarray(step, weight.dtype)), low, high).astype(np.int64)


def max_abs(weight: np.ndarray, bits: int) -> np.ndarray:
    """`s round(w / s)`, `s = max|w| / (2^(b-1) - 1)`, in the arithmetic of `weight`'s type."""
    high = 2 ** (bits - 1) - 1
    step = np.abs(weight).max() / weight.dtype.type(high)
    if step == 0:
        return np.zeros_like(weight)
    return (codes(weight, step, -high, high).astype(weight.dtype) * step).astype(weight.dtype)


def max_abs_per_channel(weight: np.ndarray, bits: int) -> np.ndarray:
    """`max_abs` of each output channel by itself."""
    return np.stack([max_abs(channel, bits) for channel in weight])


def squared_error(weight: np.ndarray, ratio: float, bits: int) -> float:
    """Squared rounding error when the range is clipped at `ratio * max|w|`."""
    high = 2 ** (bits - 1) - 1
    step = ratio * np.abs(weight).max() / high
    return float(((codes(weight, step, -high, high) * step - weight) ** 2).sum())


def straight_through_gradient(weight: np.ndarray, upstream: np.ndarray, bits: int, graph: bool) -> np.ndarray:
    """d(sum upstream * q)/dw for the max-abs quantizer, one weight at a time: the formula written out.

    dq_j/dw_i = [i = j] + [i attains max|w|] sign(w_i) / (Q ties) (k_j - w_j / s); the second term only in the graph.
    """
    high = 2 ** (bits - 1) - 1
    flat, rows = [float(x) for x in weight.ravel()], [float(x) for x in upstream.ravel()]
    peak = max(abs(x) for x in flat)
    if peak == 0:
        return np.zeros(weight.shape)
    step = peak / high
    ties = sum(abs(x) == peak for x in flat)
    through_scale = sum(g * (round(x / step) - x / step) for g, x in zip(rows, flat, strict=True))
    result = []
    for g, x in zip(rows, flat, strict=True):
        largest = abs(x) == peak
        result.append(g + (math.copysign(1.0, x) * through_scale / (high * ties) if largest and graph else 0.0))
    return np.array(result).reshape(weight.shape)


def lsq_gradients(
    weight: np.ndarray, step: float, upstream: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, float]:
    """d(sum upstream * q)/dw and the step's gradient with LSQ's factor 1/sqrt(N Q), equations 2 and 3 of the paper."""
    of_weight, of_step = [], 0.0
    for x, g in zip(weight.ravel().tolist(), upstream.ravel().tolist(), strict=True):
        scaled = x / step
        if scaled <= low:
            of_step += g * low
        elif scaled >= high:
            of_step += g * high
        else:
            of_step += g * (round(scaled) - scaled)
        of_weight.append(g if low <= scaled <= high else 0.0)
    return np.array(of_weight).reshape(weight.shape), of_step / math.sqrt(weight.size * high)
