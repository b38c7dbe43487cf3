"""Runs a network and watches which layers it calls, and which parameters reach products and its output."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.quantization.batches import call

#: Products and convolutions, and where among their arguments the operands are; what is only added is none.
_OPERANDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "linear", "matmul"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation"), (1, 2)),
    "_trilinear": (0, 1, 2),
}
_FAMILIES = {"conv": (0, 1), "_conv": (0, 1), "mkldnn_conv": (0, 1), "_scaled_dot_product": (0, 1, 2)}


@dataclass
class Seen:
    """entered: layers that were called, by name. reached, multiplied: ids of parameters, see `watch`."""

    entered: set[str]
    reached: set[int]
    multiplied: set[int]


def watch(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any) -> Seen:
    """Run a model in training and in evaluation mode, forward and backward; its layers' `forward` stay wrapped.

    reached: parameters that get a gradient from the output. multiplied: those that meet something computed from the
    inputs in a matrix product, convolution or attention outside of the given layers, also after operations of their
    own (a mask, a norm, a product of two parameters).
    """
    seen = Seen(set(), set(), set())
    operations = _Operations(model.parameters(), inputs, seen.multiplied)
    for name, layer in layers.items():
        layer.forward = partial(_enter, layer.forward, name, seen, operations)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for training in (True, False):
        model.train(training)
        with operations:
            outputs = call(model, inputs, "inputs")
        ends = [each.abs().sum() for each in tensors(outputs) if each.requires_grad]
        if ends and trained:
            gradients = torch.autograd.grad(ends, trained, allow_unused=True)
            seen.reached |= {id(p) for p, gradient in zip(trained, gradients, strict=True) if gradient is not None}
    return seen


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested sequences, mappings and dataclasses."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for each in tree:
            yield from tensors(each)
    elif is_dataclass(tree) and not isinstance(tree, type):
        yield from tensors([getattr(tree, field.name) for field in fields(tree)])


def _enter(
    forward: Callable[..., Any], name: str, seen: Seen, operations: "_Operations", *args: Any, **more: Any
) -> Any:
    """A layer's forward pass, in place of `forward`. Its output counts as an activation, even for a constant input."""
    seen.entered.add(name)
    operations.inside += 1
    try:
        result = forward(*args, **more)
    finally:
        operations.inside -= 1
    operations.mark(tensors(result), None)
    return result


@contextmanager
def products(model: nn.Module, layers: Iterable[nn.Module], inputs: Any) -> Iterator[set[str]]:
    """Within it, a forward pass fills a set with the names of modules that multiply two activations.

    That is, in a matrix product, convolution or attention outside of the given layers, two tensors that depend on the
    inputs.
    """
    where: list[str] = []
    seen = Seen(set(), set(), set())
    operations = _Operations(model.parameters(), inputs, seen.multiplied, where)
    hooks = [
        hook
        for name, module in model.named_modules()
        for hook in (
            module.register_forward_pre_hook(lambda *args, name=name: where.append(name)),
            module.register_forward_hook(lambda *args: (where.pop(), None)[1], always_call=True),
        )
    ]
    wrapped = list(layers)
    for layer in wrapped:
        layer.forward = partial(_enter, layer.forward, "", seen, operations)
    try:
        with operations:
            yield operations.products
    finally:
        for layer in wrapped:
            del layer.forward
        for hook in hooks:
            hook.remove()


class _Operations(TorchDispatchMode):
    """Follows parameters through operations, by the storage of tensors, which views share.

    An origin is a set of parameters that a tensor is computed from and nothing else but constants, or None for what
    depends on the inputs.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would else import its compiler at the first operation: a second of every launch and dry run."""
        return False

    def __init__(
        self, parameters: Iterable[nn.Parameter], inputs: Any, multiplied: set[int], where: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.inside = 0  # the number of quantized layers being called
        self.products: set[str] = set()  # the modules, last in `where`, that multiply two activations
        self._where = where
        self._multiplied = multiplied
        self._origins: dict[int, frozenset[int] | None] = {}
        self._held: list[Any] = []  # keeps the storages, whose addresses would be used again
        for parameter in parameters:
            self.mark([parameter], frozenset([id(parameter)]))
        self.mark(tensors(inputs), None)

    def mark(self, found: Iterable[Tensor], origin: frozenset[int] | None) -> None:
        """Record the origin of tensors."""
        for tensor in found:
            self._origins[_address(tensor)] = origin
            if origin:
                self._held.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        origins = [self._origin(tensor) for tensor in tensors((args, kwargs))]
        operands = [self._origin(args[place]) for place in _operands(func) if isinstance(args[place], Tensor)]
        if not self.inside and None in operands:
            self._multiplied.update(*(origin for origin in operands if origin))
            if operands.count(None) > 1 and self._where:
                self.products.add(self._where[-1])
        known = [origin for origin in origins if origin is not None]
        self.mark(tensors(result), None if len(known) < len(origins) else frozenset().union(*known))
        return result

    def _origin(self, tensor: Tensor) -> frozenset[int] | None:
        return self._origins.get(_address(tensor), frozenset())


@cache
def _operands(operation: Any) -> tuple[int, ...]:
    """Where the operands of a product are; () for any other operation."""
    name = operation._schema.name.partition("::")[2].removesuffix("_")
    family = next((places for start, places in _FAMILIES.items() if name.startswith(start)), ())
    return _OPERANDS.get(name, family)


def _address(tensor: Tensor) -> int:
    """A key that is the same for tensors that share memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors, and those without memory
        return id(tensor)
