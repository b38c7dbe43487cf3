"""Oscillations by the definition of Nagel et al., one weight and one step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Counted:
    """What one weight's trajectory of integer codes holds."""

    flips: int = 0
    oscillations: int = 0
    frequency: float = 0.0


def count(trajectory: Sequence[int], momentum: float = 0.01) -> Counted:
    """A change counts as an oscillation when it goes against the last change before it; the first never does."""
    result, direction = Counted(), 0
    for i in range(1, len(trajectory)):
        before, now = trajectory[i - 1], trajectory[i]
        oscillates = False
        if now != before:
            result.flips += 1
            new_direction = 1 if now > before else -1
            oscillates = direction != 0 and new_direction != direction
            direction = new_direction
        result.oscillations += oscillates
        result.frequency = momentum * oscillates + (1 - momentum) * result.frequency
    return result


def threshold_distance(scaled: float, low: int, high: int) -> float:
    """Distance, in steps, of `w / s` from the nearest of the thresholds between the codes low .. high."""
    return min(abs(scaled - (code + 0.5)) for code in range(low, high))
