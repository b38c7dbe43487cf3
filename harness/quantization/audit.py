"""Which parameters of a network its quantizers reach, found by running it.

A layer's type says that it can be quantized, not that the network calls it: attention may read `qkv.weight` past the
layer, and a module may multiply by a parameter of its own.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from harness.core.errors import UserError
from harness.quantization.layers import QuantLayer, attach, glob_patterns, weight_layers
from harness.quantization.slots import copy_of
from harness.quantization.watching import Seen, tensors, watch

#: Categories of parameters. Float by rule: only added, scaled or looked up (biases, embeddings, norms by default).
QUANTIZED, FLOAT, EXCLUDED, UNUSED = "quantized", "float by rule", "excluded", "unused"
PAST, OWN, BARE = "read past its layer", "multiplied outside of a quantized layer", "without slots"
#: Categories for which a run is refused, and why.
_REFUSED = {
    PAST: "the network reads the weight without calling the layer, so a quantizer there would have no effect",
    OWN: "the network multiplies by a weight of its own there, outside of linear and 2-d convolution layers",
    BARE: "other layers have slots for quantizers and this has none: it was added after `attach`, or excluded there",
}
_LISTED = 5  # names in a message


@dataclass(frozen=True, repr=False)
class Audit:
    """The category of each parameter, by name. `str()` and `repr()` give a table."""

    parameters: Mapping[str, str]

    def named(self, what: str) -> list[str]:
        """The parameters of one category, in the order of the network."""
        return [name for name, said in self.parameters.items() if said == what]

    def summary(self) -> dict[str, Any]:
        """For a record: how many parameters are quantized and float by rule; the names of those excluded and unused."""
        counted = {what: len(self.named(what)) for what in (QUANTIZED, FLOAT)}
        return {**counted, **{what: self.named(what) for what in (EXCLUDED, UNUSED)}}

    def check(self) -> None:
        """Raise UserError naming the layers whose weights would silently stay float."""
        found = []
        for what, why in _REFUSED.items():
            layers = list(dict.fromkeys(_owner(name) or name for name in self.named(what)))
            if layers:
                found.append(
                    f"layer{'s' * (len(layers) > 1)} {listed(layers)}: {why}; exclude by name what is to stay float"
                )
        if found:
            raise UserError("; ".join(found))

    def __repr__(self) -> str:
        width = max(map(len, self.parameters), default=0)
        lines = [f"{name:{width}}  {what}" for name, what in self.parameters.items()]
        counts = Counter(self.parameters.values())
        return "\n".join([*lines, ", ".join(f"{count} {what}" for what, count in counts.items())])


def audit(model: nn.Module, inputs: Any, exclude: str | Iterable[str] = (), norms: bool = False) -> Audit:
    """The category of each parameter of a network that is quantized; `print` shows them as a table.

    inputs: a batch of two or more, as the model takes it; a tuple is several arguments, a dict named ones.
    exclude, norms: as for `attach`. The model and the random state stay as they are. Costs two forward and backward
    passes of a copy in fp32. Raises UserError as `attach` does, and for inputs that the network does not take;
    `check()` of the result raises it for layers that the table shows to be wrong.
    """
    patterns = glob_patterns(exclude)
    slots = {name: isinstance(layer, QuantLayer) for name, layer in weight_layers(model, patterns, norms).items()}
    with _numbers_kept(model):
        copied = _copy(model)
        layers = attach(copied, patterns, norms)
        for layer in layers.values():
            layer.weight.requires_grad_()
        seen = watch(copied, layers, _as_fp32(inputs))
    parameters = dict(copied.named_parameters(remove_duplicate=False))
    excluded = {name for name in parameters if any(fnmatchcase(n, p) for n in (name, _owner(name)) for p in patterns)}
    # One that is shared with an excluded layer may be multiplied there.
    seen.multiplied -= {id(parameters[name]) for name in excluded}
    said = dict.fromkeys(excluded, EXCLUDED)
    called = {id(layers[name].weight) for name in seen.entered}
    names = {id(layer): name for name, layer in layers.items()}
    owners = {name: id(copied.get_submodule(_owner(name))) for name in parameters if _leaf(name) == "weight"}
    weights = {name: names[owner] for name, owner in owners.items() if owner in names}  # all names of shared layers
    elsewhere = {id(parameter) for name, parameter in parameters.items() if name not in weights}
    for name, parameter in parameters.items():
        if name in weights:
            bare = any(slots.values()) and not slots[weights[name]]
            said[name] = BARE if bare else _of_layer(id(parameter), called, elsewhere, seen)
        elif name not in excluded:
            said[name] = _of_others(parameter, called, seen)
    return Audit({name: said[name] for name in parameters})


def _of_layer(weight: int, called: set[int], elsewhere: set[int], seen: Seen) -> str:
    """The category of the weight of a quantized layer.

    called: the weights, by id, of all layers that were called. elsewhere: those that other modules, such as an
    embedding, have as well.
    """
    if weight in seen.multiplied or (weight in seen.reached - called - elsewhere):
        return PAST
    return QUANTIZED if weight in called else UNUSED


def _of_others(parameter: nn.Parameter, called: set[int], seen: Seen) -> str:
    """The category of any other parameter. One that is not trained may be used without a gradient."""
    if id(parameter) in seen.multiplied and id(parameter) not in called:
        return OWN
    return FLOAT if id(parameter) in seen.reached or not parameter.requires_grad else UNUSED


@contextmanager
def _numbers_kept(model: nn.Module) -> Iterator[None]:
    """Enables gradients, disables autocast, and restores the random state afterwards."""
    devices = {parameter.device for parameter in model.parameters()}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device for device in devices if device.type == "cuda"]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", *(device.type for device in devices)} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _copy(model: nn.Module) -> nn.Module:
    """A copy in fp32. Tensors kept from an earlier pass, with its graph, could not be copied as they are."""
    kept = (value for module in model.modules() for value in vars(module).values())
    memo = {id(each): each.detach().clone() for each in tensors(list(kept)) if not each.is_leaf}
    return copy_of(model, memo).float()


def _as_fp32(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda each: each.float() if each.is_floating_point() else each, inputs)


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _leaf(parameter: str) -> str:
    return parameter.rpartition(".")[2]


def listed(names: list[str]) -> str:
    """`'a'` or `'a', 'b' and 10 more`."""
    first = ", ".join(map(repr, names[:_LISTED]))
    return first if len(names) <= _LISTED else f"{first} and {len(names) - _LISTED} more"
