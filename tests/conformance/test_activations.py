"""What methods must do whose target has bits for activations, as w4a4."""

from pathlib import Path
from typing import Any

import pytest

from harness.conformance import activations
from harness.core import registry
from harness.methods import find

METHODS = [name for name in registry.names("method") if find(name).activations]
#: Those that train quantizers of activations, and the paper's whole stack for transformers.
STACKS = [[name] for name in METHODS if find(name).activations != "calibrated"] + [["qkr", "statsq", "cga"]]
#: Run by default: a moving range, a learned step; the others are slow only by their number.
QUICK = [["ste"], ["lsq"]]


def stacks(found: list[list[str]]) -> list[Any]:
    """Parameters of a test, those beyond QUICK marked slow."""
    marks = {True: (), False: (pytest.mark.slow,)}
    return [pytest.param(each, id="+".join(each), marks=marks[each in QUICK]) for each in found]


@pytest.mark.parametrize("stack", stacks(STACKS))
def test_resumed_equals_uninterrupted_bit_for_bit(stack: list[str], tmp_path: Path) -> None:
    activations.a_resumed_run_equals_an_uninterrupted_one(stack, tmp_path)


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_they_train_quantizers_of_every_input(stack: list[str]) -> None:
    activations.quantizers_of_every_input_are_trained(stack, constant=stack == ["any_precision"])


@pytest.mark.parametrize("stack", stacks([[name] for name in METHODS if name != "qkr"] + STACKS[-1:]))
def test_no_input_has_more_codes_than_its_bits_allow(stack: list[str]) -> None:
    if stack[0] == "bn_reestimation":
        stack = ["none", *stack]
    activations.no_input_has_more_codes_than_its_bits_allow(stack)


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_evaluation_changes_nothing_and_points_in_float_are_float(stack: list[str]) -> None:
    activations.evaluation_changes_nothing_and_points_in_float_are_float(stack)
