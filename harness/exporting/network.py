"""What a file holds of a deployed network, and a network made to compute with it again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.exporting.inputs import plain_input
from harness.quantization.deploy import set_deployed
from harness.quantization.integer_codes import Codes, codes_of, packed_bytes
from harness.quantization.key_value_points import key_value_slots
from harness.quantization.layers import give_slots, weight_layers
from harness.quantization.norms import is_norm
from harness.quantization.observing import Site, expose, input_sites
from harness.quantization.slots import QuantLayer, Unfilled

#: Bytes of a weight in fp32.
_FLOAT = 4
#: Names that an error message lists, at most.
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Network:
    """A deployed network in parts.

    layers: codes of the weights on a grid, by layer. inputs: what rounds activations, by slot ("fc1.input_quantizer").
    floats: the rest of its state dict: biases, norms, weights of layers in float. deployed: all layers whose weight was
    replaced, those in float too.
    """

    layers: dict[str, Codes]
    inputs: dict[str, nn.Module]
    floats: dict[str, Tensor]
    deployed: tuple[str, ...]

    @property
    def float_bytes(self) -> int:
        """Bytes of the network's state in fp32."""
        others = sum(each.numel() * each.element_size() for each in self.floats.values())
        return others + sum(_FLOAT * each.codes.numel() for each in self.layers.values())

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes alone, sum n b / 8."""
        return sum(packed_bytes(each.codes.numel(), each.bits) for each in self.layers.values())


def taken(model: nn.Module, bits: Mapping[str, int | None]) -> Network:
    """A deployed network in parts; bits: of each layer's weight, None for float.

    Raises UserError for weights that are not on a grid of so many bits, for quantizers that no file can hold, and for
    rounded keys and values.
    """
    if not all(isinstance(each, Unfilled) for slots in key_value_slots(model).values() for each in slots.children()):
        raise UserError("keys and values (kv) are rounded at run time, which no file holds: export a point without kv")
    found = codes_of(model, bits)
    layers = {name: codes for name, codes in found.items() if codes is not None}
    for name in found:
        if name not in layers:
            raise UserError(f"layer {name!r} has more than 2^{bits[name]} different weights: not at {bits[name]} bits")
    if not layers:
        raise UserError(
            "no layer of this network has weights on a grid of known bits. Of a network that is rounded already name "
            'them: export(model, 4, ...), or by layer, export(model, {"*": 4, "head": 8}, ...)'
        )
    modules = dict(model.named_modules())
    deployed = [name for name, layer in modules.items() if isinstance(layer, QuantLayer) and layer.deployed]
    coded = {id(modules[name].weight) for name in layers}
    inputs = _inputs(model)
    prefixes = tuple(f"{name}." for name, site in _sites(model).items() if not isinstance(site.held, Unfilled))
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in coded}
    floats = {name: value.detach().cpu() for name, value in state.items() if not name.startswith(prefixes or "\0")}
    return Network(layers, inputs, floats, tuple(deployed))


def _sites(model: nn.Module) -> dict[str, Site]:
    return input_sites(model)


def _inputs(model: nn.Module) -> dict[str, nn.Module]:
    found = {}
    for name, site in _sites(model).items():
        try:
            module = plain_input(site.held)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if module is not None:
            found[name] = module
    return found


def restore(model: nn.Module, network: Network) -> nn.Module:
    """Make a network of the same architecture compute with these parts, in place; returns it in evaluation mode.

    Raises UserError where it has other layers or other shapes.
    """
    _give_slots(model, network)
    modules = dict(model.named_modules())
    for name in network.deployed:
        codes = network.layers.get(name)
        weight = network.floats[_key(name)] if codes is None else codes.weight()
        layer = modules[name]
        set_deployed(layer, _in_place_of(name, layer.weight, weight))
    for name, site in _sites(model).items():
        held = network.inputs.get(name)
        site.put(Unfilled() if held is None else held)
    coded = {_key(name) for name in network.layers}
    try:
        found = model.load_state_dict(network.floats, strict=False)
    except RuntimeError as error:
        raise UserError(f"does not fit model: {str(error).splitlines()[-1].strip()}") from None
    prefixes = tuple(f"{name}." for name in network.inputs)
    missing = [name for name in found.missing_keys if name not in coded and not name.startswith(prefixes or "\0")]
    _check_none(found.unexpected_keys, "weights", model.state_dict())
    if missing:
        raise UserError(f"holds another network than model, which also has the weights {_listed(missing)}")
    return model.eval()


def _in_place_of(layer: str, old: Tensor, weight: Tensor) -> Tensor:
    """The weight on the device of the old one and in its memory order, by which kernels differ."""
    if old.shape != weight.shape:
        shapes = f"shape {tuple(weight.shape)} in the file and {tuple(old.shape)} in model"
        raise UserError(f"does not fit model: the weight of layer {layer!r} has {shapes}")
    return torch.empty_like(old, requires_grad=False).copy_(weight)


def _give_slots(model: nn.Module, network: Network) -> None:
    """Slots for all that the file fills; norm layers count where it has them."""
    modules = dict(model.named_modules())
    norms = any(is_norm(modules[name]) for name in network.deployed if name in modules)
    layers = weight_layers(model, norms=norms) if network.deployed else {}
    _check_none([name for name in network.deployed if name not in layers], "layers", layers)
    give_slots(model, {name: layer for name, layer in layers.items() if name in network.deployed})
    if any(name not in _sites(model) for name in network.inputs):
        expose(model)
    sites = _sites(model)
    _check_none([name for name in network.inputs if name not in sites], "rounded activations", sites)


def _key(layer: str) -> str:
    """The weight's name in a state dict."""
    return f"{layer}.weight".removeprefix(".")


def _check_none(names: Iterable[str], what: str, there: Iterable[str]) -> None:
    """Raises UserError for names that the file alone has. there: those of the network."""
    if names := list(names):
        raise UserError(
            f"holds another network than model, which lacks the {what} {_listed(names)} (it has {_listed(there)})"
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more if names else "none"
