"""Stochastic rounding of gradients: unbiased, few levels, a zero level, ranges at their limits, draws by seed."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.quantization.householder import HouseholderQuantizer
from harness.quantization.stochastic import (
    ColumnQuantizer,
    GradientQuantizer,
    SampleQuantizer,
    TensorQuantizer,
    stochastic_round,
)

DRAWS = 2000
KINDS: list[type[GradientQuantizer]] = [TensorQuantizer, SampleQuantizer, ColumnQuantizer, HouseholderQuantizer]
BITS = [2, 3, 4, 5, 8]


def gradient(samples: int = 12, places: int = 7) -> Tensor:
    """Two rows a hundred times as large as the others, and some zeros, (N, D)."""
    found = torch.randn(samples, places, generator=torch.Generator().manual_seed(1)) / 100
    found[[3, 8]] *= 100
    found[5, :3] = 0
    return found


CASES = {
    "outliers": gradient(),
    "never negative": gradient().abs(),
    "never positive": -gradient().abs(),
    "positive": gradient().abs() + 0.5,
    "hardly negative": torch.cat([gradient().abs(), torch.full((1, 7), -1e-3)]),
    "hardly positive": torch.cat([-gradient().abs(), torch.full((1, 7), 1e-3)]),
    "tiny": 1e-8 * gradient(),
}


def drawn(quantizer: GradientQuantizer, wanted: Tensor, count: int = DRAWS) -> Tensor:
    """Independent draws of a rounded G, (count, N, D), float64, from one call: copies share ranges and groups."""
    samples, places = wanted.shape
    if isinstance(quantizer, ColumnQuantizer):
        return quantizer(wanted.repeat(count, 1)).view(count, samples, places).double()
    return quantizer(wanted.repeat(1, count)).view(samples, count, places).transpose(0, 1).double()


def spans(kind: type[GradientQuantizer], wanted: Tensor) -> Tensor:
    """The range that each value shares, 0 among it, as it broadcasts to (N, D); 0 for groups, which have none."""
    if kind is HouseholderQuantizer:
        return torch.zeros(())
    dims = {TensorQuantizer: (0, 1), SampleQuantizer: (1,), ColumnQuantizer: (0,)}[kind]
    return wanted.amax(dims, keepdim=True).clamp(min=0) - wanted.amin(dims, keepdim=True).clamp(max=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_draws_is_the_gradient(case: str, kind: type[GradientQuantizer]) -> None:
    wanted = CASES[case]
    for bits in (2, 4, 8):
        found = drawn(kind(bits), wanted)
        step = 2 * spans(kind, wanted) / (2**bits - 1)  # at most
        # Of what is next to a level, the sample's variance says nothing: at most one of all draws is rounded away.
        variance = torch.maximum(found.var(0), step.square() / DRAWS)
        resolution = 4 * torch.finfo(torch.float32).eps * wanted.abs().max()
        distance = (found.mean(0) - wanted).abs()
        assert bool((distance <= 5 * (variance / DRAWS).sqrt() + resolution).all()), (bits, distance.max())


@pytest.mark.parametrize("bits", BITS)
def test_never_more_than_2_to_the_bits_levels(bits: int) -> None:
    wanted = torch.randn(400, 300, generator=torch.Generator().manual_seed(2))
    groups = {
        "tensor": [TensorQuantizer(bits)(wanted)],
        "row": list(SampleQuantizer(bits)(wanted)[:20]),
        "column": list(ColumnQuantizer(bits)(wanted).T[:20]),
    }
    for name, each in groups.items():
        counts = [len(group.unique()) for group in each]
        assert max(counts) <= 2**bits, name
        assert max(counts) > 2 ** (bits - 1), "and no bit is idle"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("case", CASES)
def test_zero_is_a_level_of_one_range_for_all(case: str, bits: int) -> None:
    """Without it, a gradient that is mostly 0 has most of its variance there."""
    wanted = torch.cat([CASES[case], torch.zeros(3, 7)])
    found = drawn(TensorQuantizer(bits), wanted, 50)
    assert not found[:, -3:].any()


def test_what_is_never_negative_has_all_levels_from_0_up() -> None:
    wanted = torch.rand(400, 5, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1):
        found = (sign * TensorQuantizer(2)(sign * wanted)).unique()
        torch.testing.assert_close(found, float(wanted.max()) * torch.arange(4) / 3)


def test_an_integer_stays() -> None:
    codes, generator = torch.arange(256.0).repeat(2000, 1), torch.Generator().manual_seed(0)
    assert torch.equal(stochastic_round(codes, 255, generator), codes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_range(kind: type[GradientQuantizer]) -> None:
    assert not kind(3)(torch.zeros(5, 4)).any()
    for value in (0.1, 7.0, -7.0, 1e-9, 1e20):
        same = torch.full((5, 4), value)
        torch.testing.assert_close(kind(3)(same), same, rtol=1e-6, atol=2e-9)  # 1e-9 is below the margin of a range
    empty = torch.zeros(0, 4)
    assert kind(3)(empty).shape == empty.shape
    for shape in ((1, 6), (2, 6), (6,), (1, 2, 3), (3, 2, 4, 4)):
        wanted = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        found = kind(4)(wanted)
        assert found.shape == wanted.shape
        assert bool(found.isfinite().all())
        assert float((found - wanted).abs().max()) < 1
    row = gradient()[3:4]
    assert torch.equal(ColumnQuantizer(2)(row), row), "columns of one sample"
    vector = torch.randn(9)
    assert torch.equal(kind(3)(vector), kind(3)(vector[None])[0]), "a vector is one sample"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(value: float, kind: type[GradientQuantizer]) -> None:
    wanted = gradient()
    wanted[3, 2] = value
    found = kind(4)(wanted)
    assert bool(found[3, 2].isnan())
    if kind is SampleQuantizer:
        assert bool(torch.cat([found[:3], found[4:]]).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_seed_and_the_calls_since(kind: type[GradientQuantizer]) -> None:
    wanted, quantizer, state = gradient(), kind(3), torch.get_rng_state()
    quantizer.start(5)
    first, second = quantizer(wanted), quantizer(wanted)
    assert not torch.equal(first, second)
    twin = copy.deepcopy(quantizer)
    assert torch.equal(twin(wanted), quantizer(wanted))
    quantizer.start(5)
    assert torch.equal(quantizer(wanted), first)
    quantizer.start(6)
    assert not torch.equal(quantizer(wanted), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not quantizer.state_dict()


@pytest.mark.parametrize("bits", [3, 5])
def test_variances_are_below_the_bounds_of_the_paper(bits: int) -> None:
    wanted, top = torch.randn(16, 12, generator=torch.Generator().manual_seed(4)), 2**bits - 1
    of_tensor, of_rows = (float(drawn(kind(bits), wanted).var(0).sum()) for kind in (TensorQuantizer, SampleQuantizer))
    rows = wanted.amax(1) - wanted.amin(1)
    zero = -wanted.min() * top / (wanted.max() - wanted.min())  # its range ends at the level below
    span = -wanted.min() * top / zero.floor()
    assert of_tensor < wanted.numel() * float(span) ** 2 / (4 * top**2)
    assert of_rows < 12 * float(rows.square().sum()) / (4 * top**2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_more_is_a_quarter_of_the_variance(kind: type[GradientQuantizer]) -> None:
    wanted = torch.randn(24, 16, generator=torch.Generator().manual_seed(4))
    variances = [float(drawn(kind(bits), wanted, 200).var(0).sum()) for bits in (5, 6, 7)]
    for one, next_one in pairwise(variances):
        assert next_one / one == pytest.approx(0.25, rel=0.25)


def test_no_other_bits() -> None:
    with pytest.raises(UserError, match="bits: 9 is no bit-width"):
        TensorQuantizer(9)
