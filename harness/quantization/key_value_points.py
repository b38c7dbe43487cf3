"""Keys and values at deployment points: which attention modules have slots for them, and what fills these."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from harness.core.config_base import KeyValueConfig
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, LayerPoints
from harness.quantization.key_values import KeyValueSlots, TokenGroupQuantizer
from harness.quantization.layers import glob_patterns
from harness.quantization.slots import Unfilled
from harness.quantization.wanted import asked, checked

#: What a network without slots lacks, in words.
NO_CACHE = "keeps no cache of keys and values (kv); transformers' decoders, such as model llama, do"


def key_value_slots(model: nn.Module, exclude: str | Iterable[str] = ()) -> dict[str, KeyValueSlots]:
    """The slots for keys and values, by the name of their attention module, unless that is excluded by name."""
    patterns = glob_patterns(exclude)
    found = {
        name.rpartition(".")[0]: module for name, module in model.named_modules() if isinstance(module, KeyValueSlots)
    }
    return {name: slots for name, slots in found.items() if not any(fnmatchcase(name, pattern) for pattern in patterns)}


def key_value_bits(
    model: nn.Module, bits: Any, exclude: str | Iterable[str] = ()
) -> dict[str, tuple[KeyValueSlots, int]]:
    """The slots that are to round, and to how many bits, by the name of the attention module.

    bits: a point, or a mapping of names and globs to points, where the name of the attention module decides. Raises
    UserError where a point has bits for keys and values and the model has no slots for them.
    """
    sites = key_value_slots(model, exclude)
    points = [checked(each) for each in (bits.values() if isinstance(bits, Mapping) else [bits])]
    with_kv = [point for point in points if point is not None and point.kv is not None]
    if with_kv and not key_value_slots(model):
        raise UserError(f"bits: {with_kv[0]}: this network {NO_CACHE}")
    wanted = {name: checked(asked(bits, name)) for name in sites}
    return {name: (sites[name], point.kv) for name, point in wanted.items() if point is not None and point.kv}


def quantize_keys_and_values(caches: Mapping[str, tuple[KeyValueSlots, int]], config: KeyValueConfig) -> None:
    """Fill what `key_value_bits` gave of a copy that is being deployed; slots that a deploy method has filled stay."""
    for slots, bits in caches.values():
        for slot in slots.SLOTS:
            if isinstance(getattr(slots, slot), Unfilled):
                slots.fill(slot, TokenGroupQuantizer(bits, config.group))


def check_keys_and_values(model: nn.Module, points: Iterable[AnyPoint], exclude: str | Iterable[str] = ()) -> None:
    """Raise UserError, before anything is deployed, for points with bits that `key_value_bits` refuses."""
    for point in points:
        key_value_bits(model, point.mapping if isinstance(point, LayerPoints) else point, exclude)
