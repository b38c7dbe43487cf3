"""The quantizer of softmax scores: its formula, its codes, and the delta that it takes."""

import math

import pytest
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.quantization.log_sqrt2 import LogSqrt2Quantizer
from harness.quantization.observed import Observed


def scores(seed: int = 0) -> Tensor:
    return (3 * torch.randn(64, 2, 9, 9, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_are_those_of_the_released_formula_and_zero_has_a_code(bits: int, extra: bool) -> None:
    quantizer = LogSqrt2Quantizer(bits, extra).fit(scores())
    x = torch.cat([scores(1).flatten(), torch.tensor([0.0, 1.0, 1e-30])])
    delta, last = float(quantizer.delta), 2**bits if extra else 2**bits - 1
    k = (-2 * (x / delta).log2()).round()
    expected = 2 ** -torch.ceil(k.clamp(min=0) / 2) * torch.where(k.clamp(min=0) % 2 == 1, math.sqrt(2), 1.0) * delta
    torch.testing.assert_close(quantizer(x), torch.where(k >= last, 0.0, expected))
    assert torch.equal(quantizer.codes(x).float(), k.clamp(0, last))
    spread = quantizer(torch.logspace(-45, 0, 5000))
    assert len(spread.unique()) == 2**bits + extra
    assert float(quantizer(torch.tensor(-1.0))) == 0
    assert math.isnan(float(quantizer(torch.tensor(math.nan))))


def test_delta_is_the_percentile_of_least_error() -> None:
    x = 0.7 * scores()
    x[0, 0, 0, 0] = 1.0
    observed = Observed.of(x)
    candidates = [observed.range("percentile", 4, each)[1] for each in (99.9, 99.99, 99.999)]
    quantizer, errors = LogSqrt2Quantizer(4).fit(observed), {}
    chosen = float(quantizer.delta)
    for delta in candidates:
        quantizer.delta.fill_(delta)
        errors[delta] = float((quantizer(x) - x).square().sum())
    assert len(errors) == 3
    assert chosen == pytest.approx(min(errors, key=lambda each: errors[each]))


def test_state_other_bits_and_inputs_of_zeros() -> None:
    quantizer = LogSqrt2Quantizer(4).fit(scores())
    fresh = LogSqrt2Quantizer(4)
    with pytest.raises(UserError, match="not fitted"):
        fresh(scores())
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(scores(1)), quantizer(scores(1)))
    other = quantizer.at_bits(3, "keep_step")
    assert (other.bits, len(other.codes(scores(1)).unique())) == (3, 8)
    assert quantizer.at_bits(4, "keep_range") is quantizer
    assert not LogSqrt2Quantizer(4).fit(torch.zeros(3, 3))(torch.zeros(3, 3)).any()
    with pytest.raises(UserError, match="never negative, and -1 was seen"):
        LogSqrt2Quantizer(4).fit(torch.tensor([[-1.0, 1.0]]))
