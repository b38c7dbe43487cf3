"""Plain float training: the baseline that every method is measured against.

With a `target_bit` the best epoch is the one whose rounded weights do best there; without, float accuracy decides.
"""

from harness.methods.base import Method


class FloatTraining(Method):
    """Adds nothing to the loop; deployed by rounding to nearest."""

    kind, acts_on = "float training", "nothing"

    needs_target_bit = False
