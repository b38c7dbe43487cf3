"""Plain float training: the baseline that every method is measured against.

The best epoch is the one with the highest accuracy: of the rounded network at `target_bit` if that is given, of the
float network otherwise.
"""

from harness.methods.base import Method

#: Names that a message takes for this one.
ALSO_CALLED = ("float", "fp32", "full_precision")


class FloatTraining(Method):
    """Adds nothing to the loop; deployed by rounding to nearest."""

    kind, acts_on = "float training", "nothing"
    refuses_norms = ""

    needs_target_bit = False
