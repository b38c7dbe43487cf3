"""Batches that a user gives, and a forward pass of a network on one of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from harness.core.errors import UserError


def check_batches(given: Any) -> None:
    """Raise UserError for calibration data that are no list or iterator of batches, such as a single batch."""
    if isinstance(given, Mapping):
        raise UserError(f"calibration is a {type(given).__name__} of inputs; give batches: [x]")
    if isinstance(given, Tensor) or hasattr(given, "__array__"):
        raise UserError(f"calibration is {'a tensor' if isinstance(given, Tensor) else 'an array'}; give batches: [x]")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UserError(f"calibration: {given!r} is no list of batches [x]")


def call(model: nn.Module, inputs: Any, field: str) -> Any:
    """A forward pass: a tuple is several arguments, a mapping named ones.

    Raises UserError, naming `field`, where the network does not take a list or tuple.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if not isinstance(inputs, list | tuple):
        return model(inputs)
    try:
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    except (TypeError, AttributeError) as error:
        alone = "give the tensor itself" if len(inputs) == 1 else "of inputs and labels give [x for x, _ in loader]"
        raise UserError(
            f"{field}: the network does not take this {type(inputs).__name__} of {len(inputs)} as a batch; {alone} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
