"""Integer codes of a deployed weight, found from its values: they reproduce it to the last bit.

No quantizer is asked, so that it does not matter which method put the weight on its grid.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.quantization.slots import QuantLayer

#: How far from a whole number `w / step` may be for a step to be tried.
_NEAR = 1e-3
#: How many values show that there are too many, and that most steps do not fit; of each row at least `_OF_ROW`.
_MANY, _FEW, _OF_ROW = 1024, 256, 16


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight as codes. bits: of a code, 2 to 8.

    codes: uint8, 0 to 2^bits - 1, in the weight's shape (O, ...). The weight is `scale * (codes - zero)`, or
    `levels[codes]` where its levels are not evenly spaced.
    scale: fp32, (1,) per tensor or (O,) per output channel. zero: a whole number, or half of an odd one where 0 is
    no level. levels: fp32, (1, L) or (O, L), L = 2^bits.
    """

    codes: Tensor
    bits: int
    scale: Tensor | None
    zero: float
    levels: Tensor | None = None

    def weight(self) -> Tensor:
        """The weight, fp32."""
        if self.levels is not None:
            rows = self.codes.long().view(len(self.levels), -1)
            return self.levels.gather(1, rows).view(self.codes.shape)
        assert self.scale is not None
        steps = self.scale.view(-1, *[1] * (self.codes.dim() - 1)) if len(self.scale) > 1 else self.scale
        return steps * (self.codes.float() - self.zero)

    @property
    def per_channel(self) -> bool:
        """Whether output channels have a scale, or levels, each."""
        own = self.scale if self.levels is None else self.levels
        return own is not None and len(own) > 1


def find_codes(weight: Tensor, bits: int) -> Codes | None:
    """The codes of a weight (O, ...), fp32 on the CPU, which may have 2^bits values; None where it has more.

    Evenly spaced levels are preferred to a table, one step to one per channel.
    """
    weight = weight.detach().float().cpu().contiguous()
    whole, rows = weight.view(1, -1), weight.flatten(1) if weight.dim() > 1 else weight.view(1, -1)
    few = len(_sampled(whole, _MANY).unique()) <= 2**bits
    found = _even(weight, whole, bits) if few else None
    found = found or (_even(weight, rows, bits) if weight.dim() > 1 else None)
    return found or (_table(weight, whole, bits) if few else None) or _table(weight, rows, bits)


def codes_of(model: nn.Module, bits: Mapping[str, int | None]) -> dict[str, Codes | None]:
    """The codes of a deployed network's weights, by layer; None for a weight with more values than its bits allow.

    bits: of each layer's weight (`weight_bits`). Layers in float are not among those of the result.
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer) and layer.deployed and (each := bits.get(name)) is not None:
            found[name] = find_codes(layer.weight, each)
    return found


def codes_digest(layers: Mapping[str, Codes]) -> str:
    """A digest of a network's codes and of what they stand for: SHA-256, 64 hexadecimal digits.

    layers: by name. In the order of the names, each adds a line of JSON, [name, bits, shape, zero]; its codes, a byte
    each; and its scale or its levels, fp32, little-endian.
    """
    digest = hashlib.sha256()
    for name, one in sorted(layers.items()):
        digest.update(f"{json.dumps([name, one.bits, list(one.codes.shape), one.zero])}\n".encode())
        digest.update(one.codes.flatten().numpy().data)
        own = one.scale if one.levels is None else one.levels
        assert own is not None
        digest.update(own.flatten().numpy().astype("<f4").data)
    return digest.hexdigest()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes, uint8 of any shape, in ceil(n bits / 8) bytes, uint8: the first code in the lowest bits of the first."""
    each = (codes.flatten()[:, None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    flat = torch.cat([each.flatten(), each.new_zeros(-each.numel() % 8)]).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`, uint8 in a shape."""
    each = ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()
    count = torch.Size(shape).numel()
    rows = each[: count * bits].view(count, bits)
    return (rows << torch.arange(bits, dtype=torch.uint8)).sum(1, dtype=torch.uint8).view(shape)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return -(-count * bits // 8)


def _sampled(rows: Tensor, count: int) -> Tensor:
    """About so many values, evenly spaced, of all rows (R, n) together: a view (R, m)."""
    return rows[:, :: max(1, rows.shape[1] // max(_OF_ROW, count // len(rows)))]


def _even(weight: Tensor, rows: Tensor, bits: int) -> Codes | None:
    """Codes of evenly spaced levels; rows: (1, n) values of all, or (O, n) those of each channel."""
    half = 2 ** (bits - 1)
    for odd in (False, True):  # levels k steps, or k + 1/2
        units = range(2 * half - 1, 0, -2) if odd else (half - 1, half, *range(half - 2, 0, -1))
        unit = _units(rows, list(units), odd, 2 * half - 1 if odd else half - 1)
        if unit is None:
            continue
        scale, zero = (2 * unit, half - 0.5) if odd else (unit, float(half))
        steps = scale.view(-1, *[1] * (weight.dim() - 1))
        # A channel of zeros has no step: 1 there, or 0 where no level is 0.
        codes = torch.where(steps > 0, weight / steps, 0.0).add_(zero).round_()
        scale = scale if odd else torch.where(scale > 0, scale, torch.ones_like(scale))
        found = Codes(codes.clamp_(0, 2 * half - 1).to(torch.uint8), bits, scale, zero)
        if torch.equal(found.weight(), weight):
            return found
    return None


def _units(rows: Tensor, tried: list[int], odd: bool, most: int) -> Tensor | None:
    """For each row the number u of which all values are a (or an odd) multiple, (R,); 0 for zeros; None for none.

    tried: what multiple of u the largest magnitude may be. most: the largest multiple above 0.
    """
    largest = rows.abs().amax(1)
    unit, left, steps = torch.zeros_like(largest), largest > 0, largest[:, None] / torch.tensor(tried)
    scaled = _sampled(rows, _FEW)[:, None] / steps[:, :, None]
    whole = _multiples(scaled, odd)
    near = ((scaled - whole).abs() < _NEAR).all(2) & (whole <= most).all(2)
    for place in near.any(0).nonzero().flatten().tolist():
        places = (near[:, place] & left).nonzero().flatten()
        for nudge in (0, 1, -1, 2, -2):  # the division may be a few ulps off the step
            if not len(places):
                break
            values, step = rows[places], steps[places, place]
            candidate, whole = _ulps(step, nudge), _multiples(values / step[:, None], odd)
            exact = (candidate[:, None] * whole == values).all(1) & (whole <= most).all(1)
            unit[places[exact]] = candidate[exact]
            left[places[exact]] = False
            places = places[~exact]
    return None if left.any() else unit


def _multiples(scaled: Tensor, odd: bool) -> Tensor:
    """The nearest whole number, or an odd one beside it."""
    return 2 * (scaled / 2).floor() + 1 if odd else scaled.round()


def _ulps(values: Tensor, count: int) -> Tensor:
    """Positive numbers, so many representable ones further."""
    return (values.view(torch.int32) + count).view(torch.float32)


def _table(weight: Tensor, rows: Tensor, bits: int) -> Codes | None:
    """Codes that are places in a table of each row's values."""
    tables, places = [], []
    for row in rows:
        values, place = row.unique(return_inverse=True)
        if len(values) > 2**bits:
            return None
        tables.append(torch.cat([values, values[-1:].expand(2**bits - len(values))]))
        places.append(place)
    codes = torch.stack(places).to(torch.uint8).view(weight.shape)
    return Codes(codes, bits, None, 0.0, torch.stack(tables))
