"""Products whose gradients pass through slots: one slot for the gradient of the input, one for those of the rest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.kernels import dispatch
from harness.quantization.slots import SlotTakenError, Slotted, Unfilled, autocast_off


def product(layer: Slotted, operation: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
    """`operation(x, *others)`; its gradient dY passes through `layer.GRADIENT_SLOTS`, one for x, one for the others.

    A slot's module gets dY in fp32, in the shape of the result, without a graph, and gives the tensor to use in its
    place. It is called once for each backward pass through the product, and not at all where nothing needs its result.
    With empty slots, and where nothing is trained, this is the operation itself, without a further node in the graph.

    A recorded network (torch.jit.trace, fx, exports) has the gradients of the operation: it is there to be deployed.
    torch.compile leaves out products with filled slots. Raises UserError for gradients of gradients and in torch.func.
    """
    quantizers = {slot: getattr(layer, slot) for slot in layer.GRADIENT_SLOTS}
    empty = all(isinstance(quantizer, Unfilled) for quantizer in quantizers.values())
    if empty or _recorded(x) or not (torch.is_grad_enabled() and any(map(_needs_gradient, (x, *others)))):
        return operation(x, *others)
    apply = _apply_uncompiled if torch.compiler.is_compiling() else _apply
    return apply(operation, quantizers, x, *others)


def refuse_gradient_slots(model: nn.Module, method: str) -> None:
    """Raise SlotTakenError if a slot for gradients is filled. method: one that differentiates gradients."""
    for name, module in model.named_modules():
        for slot in module.GRADIENT_SLOTS if isinstance(module, Slotted) else ():
            if not isinstance(getattr(module, slot), Unfilled):
                raise SlotTakenError(
                    f"methods: {method!r} differentiates gradients, which {type(getattr(module, slot)).__name__} in "
                    f"slot {slot} of layer {name!r} does not support; use one of the two methods"
                )


def _needs_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _recorded(x: object) -> bool:
    """Whether the operations on `x` are written down, for a network that is deployed elsewhere."""
    return not isinstance(x, Tensor) or torch.jit.is_tracing() or torch.compiler.is_exporting()


def _apply(operation: Callable[..., Tensor], quantizers: dict[str, nn.Module], *tensors: Tensor | None) -> Tensor:
    if dispatch.transformed(tensors[0]):
        raise UserError(f"{_filled(quantizers)} changes gradients, which torch.func and forward-mode AD would not see")
    return _Product.apply(operation, quantizers, *tensors)


# Its backward pass differentiates, which torch.compile does not follow.
_apply_uncompiled = torch._disable_dynamo(_apply)  # the public function would import torch's compiler now


def _filled(quantizers: dict[str, nn.Module]) -> str:
    """The filled slots and their modules, in words."""
    filled = {slot: module for slot, module in quantizers.items() if not isinstance(module, Unfilled)}
    return " and ".join(f"{type(module).__name__} in slot {slot}" for slot, module in filled.items())


class _Product(torch.autograd.Function):
    """Holds a graph of the operation alone, and goes through it once for each slot.

    So each gradient is computed as autograd computes it, to the last bit, for any operation.
    """

    @staticmethod
    def forward(
        ctx: Any, operation: Callable[..., Tensor], quantizers: dict[str, nn.Module], *tensors: Tensor | None
    ) -> Tensor:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            ends = [
                None if each is None else each.detach().requires_grad_(needs)
                for each, needs in zip(tensors, needed, strict=True)
            ]
            result = operation(*ends)
        ctx.quantizers = quantizers
        ctx.save_for_backward(result, *ends)  # not an attribute: freed with the graph around this node
        return result.data  # not detach(): an operation in place on the output would count as a change of `result`

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, quantizers = gradients[0], ctx.quantizers
        if torch.is_grad_enabled():
            raise UserError(f"{_filled(quantizers)} changes gradients, so these cannot be differentiated again")
        if dispatch.transformed(gradient):
            raise UserError(f"{_filled(quantizers)} takes one gradient at a time (is_grads_batched=False)")
        result, *ends = ctx.saved_tensors
        found: list[Tensor | None] = [None] * len(ends)
        for quantizer, places in zip(quantizers.values(), ([0], range(1, len(ends))), strict=True):
            needed = [place for place in places if ctx.needs_input_grad[2 + place]]
            if needed:
                by = _quantized(quantizer, gradient)
                parts = torch.autograd.grad(result, [ends[place] for place in needed], by, retain_graph=True)
                for place, part in zip(needed, parts, strict=True):
                    found[place] = part
        return None, None, *found


def _quantized(quantizer: nn.Module, gradient: Tensor) -> Tensor:
    """A gradient as a slot gives it, in its own type; the slot computes in fp32."""
    if isinstance(quantizer, Unfilled):
        return gradient
    with autocast_off(gradient):
        return quantizer(gradient.float()).to(gradient.dtype)
