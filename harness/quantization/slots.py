"""Slots: places in a module that methods fill; Identity until then."""

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.core.errors import UserError, unknown
from harness.kernels import dispatch


class SlotTakenError(UserError):
    """Two methods of a stack want the same slot of a layer, or one cannot work with what another put into it."""


class Unfilled(nn.Identity):
    """An empty slot. Has no state, so copies of a model share it: evaluation copies models often."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unfilled":
        return self

    def train(self, mode: bool = True) -> "Unfilled":
        """Without a mode, which a copy's `eval()` would change in the source."""
        return self


def copy_of(model: nn.Module, memo: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """`deepcopy(model, memo)`, in half the time: of a small network most of that goes into empty tables of hooks."""
    empty = (value for module in model.modules() for value in vars(module).values() if _is_empty(value))
    return deepcopy(model, {id(value): type(value)() for value in empty} | dict(memo))


def _is_empty(value: Any) -> bool:
    return type(value) in (OrderedDict, dict, set) and not value


class Slotted(nn.Module):
    """A module with named slots that methods fill."""

    SLOTS: ClassVar[tuple[str, ...]] = ()
    #: Two of them, or none: for the gradient of a product's input, and for the gradients of its other operands.
    GRADIENT_SLOTS: ClassVar[tuple[str, ...]] = ()

    def add_slots(self) -> None:
        """Give the module its slots, all empty (Identity)."""
        for slot in self.SLOTS:
            setattr(self, slot, Unfilled())

    def fill(self, slot: str, module: nn.Module) -> None:
        """Put a module into a slot. Raises UserError when the slot is unknown or taken."""
        if slot not in self.SLOTS:
            raise unknown("slot", slot, self.SLOTS)
        present = getattr(self, slot)
        if not isinstance(present, Unfilled):
            raise SlotTakenError(
                f"slot {slot} already holds {type(present).__name__}, so {type(module).__name__} cannot have it: "
                "two methods of a stack, or two calls of `attach`, clash"
            )
        setattr(self, slot, module)

    def __repr__(self) -> str:
        """Without the empty slots."""
        shown = object.__new__(type(self))
        modules = {name: module for name, module in self._modules.items() if not isinstance(module, Unfilled)}
        shown.__dict__ = {**self.__dict__, "_modules": modules}
        return super(Slotted, shown).__repr__()


def quantized(quantizer: nn.Module, x: Tensor) -> Tensor:
    """An activation as a layer uses it, same shape; a filled slot computes in fp32, also under autocast."""
    if isinstance(quantizer, Unfilled):
        return x
    with autocast_off(x):
        return quantizer(x.float())


def autocast_off(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for the device of `x`; nothing where there is none (meta tensors, proxies of fx)."""
    if not isinstance(x, Tensor) or not torch.amp.is_autocast_available(x.device.type):
        return nullcontext()
    if torch.compiler.is_compiling():
        return torch.autocast(x.device.type, enabled=False)
    return _AutocastOff(x.device.type) if torch.is_autocast_enabled(x.device.type) else nullcontext()


class _AutocastOff:
    """As torch.autocast does it, in a fifth of the time: each layer is asked twice a step."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> None:
        torch.set_autocast_enabled(self.device, False)

    def __exit__(self, *error: object) -> None:
        torch.set_autocast_enabled(self.device, True)


GRADIENT_SLOTS = ("grad_input_quantizer", "grad_weight_quantizer")
SLOTS = ("weight_transform", "weight_quantizer", "input_quantizer", *GRADIENT_SLOTS)


class QuantLayer(Slotted):
    """What layers with a quantized weight share: five slots, and quantizer arithmetic outside autocast."""

    SLOTS: ClassVar[tuple[str, ...]] = SLOTS
    GRADIENT_SLOTS: ClassVar[tuple[str, ...]] = GRADIENT_SLOTS
    weight: Tensor
    weight_transform: nn.Module
    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    grad_input_quantizer: nn.Module
    grad_weight_quantizer: nn.Module
    #: Set once the weight is what the network is deployed with.
    deployed: bool = False

    def fill(self, slot: str, module: nn.Module) -> None:
        """As `Slotted.fill`; a weight quantizer that is not fitted yet is fitted to the effective weight."""
        super().fill(slot, module)
        if slot == "weight_quantizer" and not getattr(module, "fitted", True):
            with torch.no_grad(), autocast_off(self.weight):
                module.fit(self.effective_weight())  # type: ignore[operator]

    def effective_weight(self) -> Tensor:
        """The weight that gets quantized: the trained one after the layer's weight_transform."""
        return self.weight_transform(self.weight)

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it, fp32, in the shape of the effective one."""
        with autocast_off(self.weight):
            return self.weight_quantizer(self.effective_weight())

    def multiplied_weight(self) -> Tensor:
        """The same for a product: in bf16 at once where autocast would cast it, and the quantizer has it so."""
        known = getattr(type(self.weight_quantizer).forward, "gives_bf16", False)
        if not (known and dispatch.multiplied_in_bf16(self.weight)):
            return self.quantized_weight()
        with autocast_off(self.weight):
            return self.weight_quantizer(self.effective_weight(), bf16=True)
