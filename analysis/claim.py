"""The claims of Wenshøj, Pepin and Selvan (TMLR 2025), in the words and units of what a task measures."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from analysis import measure, paired
from analysis.paired import QAT, REGULARIZER, Sides
from analysis.series import Group
from analysis.t_tests import CONTRADICTED, SUPPORTED, UNDECIDED, Comparison
from harness.core.metric import Metric

NOT_TESTED = "not tested"


@dataclass(frozen=True)
class ClaimTest:
    """A claim for one method at one target bit-width (None where the sweep has none to test it at)."""

    method: str
    target: int | None
    statement: str
    result: Comparison = field(default_factory=Comparison)
    p_holm: float = math.nan
    verdict: str = NOT_TESTED
    #: Why there is no verdict or no test, and what a reader of the numbers should know.
    reason: str = ""
    #: What of the tuning of its sides leaves it in doubt (`chosen.doubted`).
    doubts: str = ""


@dataclass(frozen=True)
class Claim:
    """ "The effect is above the margin" (both in `unit`), and the tests of it."""

    key: str
    text: str
    #: The claim at one target, with {method} and {bits}.
    statement: str
    effect: str
    unit: str
    margin: float
    #: How an effect is printed.
    style: str
    methods: tuple[str, ...]
    #: The targets to test at, from those that the sweep has.
    targets: Callable[[list[int]], list[int]] = field(repr=False)
    sides: Callable[[Group, str, int], Sides] = field(repr=False)
    #: The sweep and group that were tested.
    title: str = ""
    tests: tuple[ClaimTest, ...] = ()
    #: What of the group takes no part, as a sentence after another; nothing where all does.
    left_out: str = ""

    @property
    def verdict(self) -> str:
        """Contradicted if one of the tests made is, supported if all of them are."""
        found = {test.verdict for test in self.tests} - {NOT_TESTED}
        if not found:
            return NOT_TESTED
        return CONTRADICTED if CONTRADICTED in found else SUPPORTED if found == {SUPPORTED} else UNDECIDED

    @property
    def why_untested(self) -> str:
        """Why none of its tests was made; nothing where one was, or the reasons are several."""
        reasons = {test.reason for test in self.tests}
        return reasons.pop() if self.verdict == NOT_TESTED and len(reasons) == 1 else ""

    @property
    def head(self) -> str:
        """`(b) undecided (2 of 3 supported)`: verdicts and how many tests have another."""
        return f"({self.key}) {self.verdict}{self.split}"

    @property
    def split(self) -> str:
        """How the tests fell where they did not all fall alike: ` (1 of 3 supported, 1 of 3 not tested)`."""
        counts = Counter(test.verdict for test in self.tests)
        if len(counts) < 2:
            return ""
        order = (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED)
        # One contradicted test contradicts the claim, so that their number is told besides.
        named = [name for name in order if counts[name] and (name != self.verdict or name == CONTRADICTED)]
        told = [f"{counts[name]} of {len(self.tests)} {name}" for name in named]
        return f" ({', '.join(told)})"

    @property
    def doubts(self) -> str:
        """What of the tuning leaves its verdict in doubt, each training once."""
        return "; ".join(dict.fromkeys(each for test in self.tests if test.doubts for each in test.doubts.split("; ")))

    @property
    def definition(self) -> str:
        unit = f", in {self.unit}" if self.unit else ""
        return f"Effect: {self.effect}{unit}; supported above {self.margin:g}."


def claims_about(metric: Metric) -> tuple[Claim, ...]:
    """Claims (a) to (e). "Within" is the metric's margin; an effect is positive where its first side is better."""
    name, close, margin = metric.name, measure.close(metric), measure.margin(metric)
    above, below, lowest = ("above", "below", "lowest") if metric.higher_is_better else ("below", "above", "highest")
    unit, style = measure.difference_unit(metric), f"+.{metric.digits}f"

    def less(first: str, second: str) -> str:
        """The effect in words."""
        return f"{first} less {second}" if metric.higher_is_better else f"{second} less {first}"

    def of_rivals(one: str, other: str) -> str:
        first, second = (one, other) if metric.higher_is_better else (other, one)
        return f"{name} of {first} less that of {second}"

    worst, own = f"{lowest} {name} at the bit-widths above the target", f"float {name}"
    return (
        Claim(
            "a", "QAT and the regularizer oscillate far more than float training",
            f"{{method}}@{{bits}} oscillates more than {paired.FAR_MORE:g} times as often as float training",
            f"oscillation frequency, mean over epochs, less {paired.FAR_MORE:g} times that of float training",
            "1/step", 0.0, "+#.2g",
            (QAT, REGULARIZER), lambda found: found, paired.frequency_sides,
        ),
        Claim(
            "b", f"the regularizer is within {close} of QAT (or {above} it) at targets of 3 bits and more",
            f"{REGULARIZER}@{{bits}} is less than {close} {below} {QAT}@{{bits}} at {{bits}} bits",
            f"{of_rivals('the regularizer', 'QAT')} at their target", unit, -margin, style,
            (REGULARIZER,), lambda found: [bits for bits in found if bits >= 3], paired.target_sides,
        ),
        Claim(
            "c", "QAT beats the regularizer at ternary (2 bits)",
            f"{QAT}@{{bits}} is {above} {REGULARIZER}@{{bits}} at {{bits}} bits",
            f"{of_rivals('QAT', 'the regularizer')} at their target", unit, 0.0, style,
            (QAT,), lambda found: [2], paired.target_sides,
        ),
        Claim(
            "d", f"above its target the regularizer stays within {close} of its own float {name}",
            f"{REGULARIZER}@{{bits}} is less than {close} {below} its float {name} at every higher bit-width",
            f"{less(worst, own)} of the same run", unit, -margin, style,
            (REGULARIZER,), lambda found: found, paired.float_sides,
        ),
        Claim(
            "e", f"the regularizer beats QAT in mean {name} over the other bit-widths, for targets 2 and 3",
            f"{REGULARIZER}@{{bits}} is {above} {QAT}@{{bits}} in the mean over the other bit-widths",
            f"{of_rivals('the regularizer', 'QAT')}, mean over the integer bit-widths but the target", unit, 0.0, style,
            (REGULARIZER,), lambda found: [2, 3], paired.other_sides,
        ),
    )  # fmt: skip
