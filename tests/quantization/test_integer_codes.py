"""Integer codes found from the values of deployed weights, and their bytes."""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.quantization import (
    ClippedQuantizer,
    CompandingQuantizer,
    DecoupledQuantizer,
    DoReFaQuantizer,
    LSQQuantizer,
    MaxAbsQuantizer,
    StatisticalQuantizer,
    WeightQuantizer,
)
from harness.quantization.integer_codes import Codes, codes_digest, find_codes, pack, packed_bytes, unpack


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def codes(weight: Tensor, bits: int) -> Codes:
    found = find_codes(weight, bits)
    assert found is not None
    return found


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_come_back(bits: int) -> None:
    values = torch.randint(0, 2**bits, (7, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(values, bits)
    assert len(packed) == packed_bytes(63, bits) == -(-63 * bits // 8)
    assert torch.equal(unpack(packed, bits, (7, 3, 3)), values)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]


EVEN: dict[str, Callable[[int, bool], WeightQuantizer]] = {
    "max-abs": MaxAbsQuantizer,
    "clipped": ClippedQuantizer,
    "lsq": LSQQuantizer,
    "lsq full": lambda bits, channel: LSQQuantizer(bits, channel, "full"),
    "statistical": StatisticalQuantizer,
    "dorefa": DoReFaQuantizer,
    "decoupled": DecoupledQuantizer,
}


@pytest.mark.parametrize("channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("name", EVEN)
def test_evenly_spaced_levels_need_one_scale(name: str, channel: bool) -> None:
    for bits in (2, 3, 4, 8):
        weight = weights(6, 5, 3, 3)
        quantizer = EVEN[name](bits, channel).fit(weight)
        with torch.no_grad():
            deployed = quantizer(weight)
        found = codes(deployed, bits)
        assert found.levels is None
        assert found.scale is not None
        assert torch.equal(found.weight(), deployed)
        assert len(found.scale) == (6 if channel else 1)
        assert int(found.codes.max()) < 2**bits
        assert (found.zero % 1 == 0.5) == (name in ("statistical", "dorefa", "decoupled"))


@pytest.mark.parametrize("channel", [False, True], ids=["tensor", "channel"])
def test_other_levels_become_a_table(channel: bool) -> None:
    weight = weights(6, 40)
    quantizer = CompandingQuantizer(4, channel).fit(weight)
    with torch.no_grad():
        assert quantizer.log_slopes is not None
        quantizer.log_slopes.copy_(torch.linspace(-1, 1, 16))
        deployed = quantizer(weight)
    found = codes(deployed, 4)
    assert found.levels is not None
    assert found.scale is None
    assert found.levels.shape == (6 if channel else 1, 16)
    assert torch.equal(found.weight(), deployed)


@pytest.mark.parametrize("kind", [MaxAbsQuantizer, StatisticalQuantizer])
def test_channels_of_zeros(kind: type[WeightQuantizer]) -> None:
    weight = weights(4, 30)
    weight[2] = 0
    deployed = kind(3, True)(weight)
    assert torch.equal(codes(deployed, 3).weight(), deployed)
    assert torch.equal(codes(torch.zeros(3, 4), 2).weight(), torch.zeros(3, 4))


def test_float_weights_have_no_codes() -> None:
    assert find_codes(weights(4, 30), 4) is None
    assert find_codes(weights(30), 4) is None


def test_values_that_no_sample_shows_count() -> None:
    weight = torch.zeros(20_000)
    weight[::2] = 0.5  # of every second value some are looked at first, and they fit a step of 0.5
    weight[7] = 0.25
    found = codes(weight, 3)
    assert torch.equal(found.weight(), weight)
    weight[9] = 0.1234
    assert codes(weight, 3).levels is not None


def of_two_layers() -> dict[str, Codes]:
    return {"b": codes(MaxAbsQuantizer(4)(weights(3, 5)), 4), "a": codes(MaxAbsQuantizer(2, True)(weights(2, 3)), 2)}


def test_the_digest_is_that_of_names_codes_and_scales() -> None:
    layers = of_two_layers()
    content = hashlib.sha256()
    for name, shape, bits in (("a", [2, 3], 2), ("b", [3, 5], 4)):
        content.update(f'["{name}", {bits}, {shape}, {float(2 ** (bits - 1))}]\n'.encode())
        content.update(bytes(layers[name].codes.flatten().tolist()))
        scale = layers[name].scale
        assert scale is not None
        content.update(struct.pack(f"<{len(scale)}f", *scale.tolist()))
    assert codes_digest(layers) == codes_digest(dict(reversed(layers.items()))) == content.hexdigest()


@pytest.mark.parametrize("part", ["codes", "scale", "zero", "name"])
def test_the_digest_changes_with_each_part(part: str) -> None:
    layers = of_two_layers()
    one = layers["b"]
    assert one.scale is not None
    changed = {
        "codes": {"b": replace(one, codes=one.codes ^ (torch.arange(15).view(3, 5) == 8))},
        "scale": {"b": replace(one, scale=torch.nextafter(one.scale, torch.ones(1)))},
        "zero": {"b": replace(one, zero=one.zero - 0.5)},
        "name": {"c": one},
    }[part]
    assert codes_digest({"a": layers["a"], **changed}) != codes_digest(layers)
