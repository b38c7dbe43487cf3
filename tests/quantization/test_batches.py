"""Batches that a user gives: one in place of several, several in place of one, and pairs with labels."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from layers_common import images, network
from torch import nn

import harness
from harness.core.errors import UserError

NOT_BATCHES: dict[str, tuple[Any, str]] = {
    "a tensor": (images(), r"^calibration is a tensor; give batches: \[x\]$"),
    "an array": (images().numpy(), r"^calibration is an array; give batches: \[x\]$"),
    "one batch by names": ({"x": images()}, r"^calibration is a dict of inputs; give batches: \[x\]$"),
    "a number": (3, r"^calibration: 3 is no list of batches \[x\]$"),
    "a path": ("digits.npz", r"^calibration: 'digits.npz' is no list of batches \[x\]$"),
    "pairs of a loader": ([[images(), torch.zeros(4)]], r"calibration: .* list of 2 .*\[x for x, _ in loader\]"),
    "arguments": ([(images(), torch.zeros(4))], r"calibration: .* tuple of 2 .*\[x for x, _ in loader\]"),
    "a list in a list": ([[images()]], r"calibration: .* list of 1 .*give the tensor itself"),
}
TAKING: dict[str, Callable[[nn.Module, Any, Path], Any]] = {
    "round_to_nearest": lambda model, x, _: harness.round_to_nearest(deepcopy(model), "w4a8", calibration=x),
    "observe": lambda model, x, _: harness.observe(model, x),
    "export": lambda model, x, to: harness.export(model, "w4a8", to / "net.bin", calibration=x),
}


@pytest.mark.parametrize("function", TAKING)
@pytest.mark.parametrize("what", NOT_BATCHES)
def test_what_is_no_list_of_batches_is_refused(function: str, what: str, tmp_path: Path) -> None:
    given, said = NOT_BATCHES[what]
    with pytest.raises(UserError, match=said):
        TAKING[function](network(), given, tmp_path)


def test_a_tensor_is_refused_where_no_activations_are_asked_for_too() -> None:
    with pytest.raises(UserError, match="calibration is a tensor"):
        harness.round_to_nearest(network(), 4, calibration=images())


def test_one_batch_is_wanted_and_several_are_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^inputs: .* list of 1 .*give the tensor itself"):
        harness.audit(network(), [images()])
    with pytest.raises(UserError, match=r"^inputs is a list; .* needs a batch of two or more"):
        harness.export(network(), 4, tmp_path / "net.onnx", format="onnx", inputs=[images()])  # type: ignore[arg-type]


def test_what_is_observed_and_iterators_are_taken() -> None:
    model = network()
    seen = harness.observe(model, (each for each in images().split(2)))
    by_batches = harness.round_to_nearest(deepcopy(model), "w4a8", calibration=iter(images().split(2)))
    by_observation = harness.round_to_nearest(deepcopy(model), "w4a8", calibration=seen)
    assert torch.equal(by_batches(images()), by_observation(images()))


def test_a_fault_of_the_network_itself_is_not_told_as_one_of_the_batches() -> None:
    class Faulty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise TypeError("its own")

    with pytest.raises(TypeError, match="its own") as caught:
        harness.observe(Faulty(), [torch.zeros(2, 2)])
    assert not isinstance(caught.value, UserError)
