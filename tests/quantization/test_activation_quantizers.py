"""Quantizers of activations: against torch's own, against loops and hand formulas, and on inputs at the edge."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.core.config_base import ActivationsConfig
from harness.core.errors import UserError
from harness.kernels import dispatch
from harness.quantization import (
    ActivationQuantizer,
    LearnedStepQuantizer,
    MovingRangeQuantizer,
    StaticQuantizer,
    TokenQuantizer,
    make_activation_quantizer,
)
from harness.quantization.activations import Rows
from harness.quantization.observed import Observed

KINDS: list[Callable[[int], ActivationQuantizer]] = [
    StaticQuantizer,
    lambda bits: StaticQuantizer(bits, "max"),
    lambda bits: StaticQuantizer(bits, "percentile"),
    TokenQuantizer,
    lambda bits: TokenQuantizer(bits, "column"),
    LearnedStepQuantizer,
    MovingRangeQuantizer,
]
WITH_VALUES = [kind for kind in KINDS if kind(4).takes_values]
LARGE = torch.finfo(torch.float32).max


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INPUTS = {
    "signed": drawn(16, 40),
    "never negative": drawn(16, 40).relu(),
    "never positive": -drawn(16, 40).relu() - 1,
    "one-sided": drawn(16, 40).exp() - 0.1,
}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("x", INPUTS.values(), ids=list(INPUTS))
def test_a_static_range_equals_torchs_fake_quantization_but_for_ties(x: Tensor, bits: int) -> None:
    quantizer = StaticQuantizer(bits).fit(x)
    step, low, high = quantizer.grid(x)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    own = quantizer(first)
    zero = torch.as_tensor(-low).to(torch.int32)
    torchs = torch.fake_quantize_per_tensor_affine(second, step, zero, 0, 2**bits - 1)
    tie = ((x / step) % 1 - 0.5).abs() < 1e-4
    assert tie.float().mean() < 0.02
    torch.testing.assert_close(own[~tie], torchs[~tie], rtol=1e-6, atol=0)
    weights = drawn(*x.shape, seed=1)
    (own * weights).sum().backward()
    (torchs * weights).sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    # Plain operations multiply and divide by the step.
    torch.testing.assert_close(first.grad[~tie], second.grad[~tie], rtol=1e-6, atol=0)
    outside = (x / step < low - 0.5) | (x / step > high + 0.5)
    assert (first.grad[outside & ~tie] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_there_are_never_more_codes_than_bits_allow(kind: Callable[[int], ActivationQuantizer], bits: int) -> None:
    for x in (*INPUTS.values(), drawn(400, 500)):
        quantizer = kind(bits)
        quantizer = (quantizer.fit(x) if quantizer.takes_values else quantizer).eval()
        rows = {"last": list, "column": lambda y: list(y.T)}.get(getattr(quantizer, "rows", ""), lambda y: [y])
        y, codes = quantizer(x), quantizer.codes(x)
        assert y.shape == x.shape == codes.shape
        assert not codes.is_floating_point()
        for values, of in zip(rows(y), rows(codes), strict=True):
            assert len(values.unique()) == len(of.unique()) <= 2**bits
            assert int(of.max()) - int(of.min()) < 2**bits
        step, low, _ = quantizer.grid(x)
        torch.testing.assert_close((codes + quantizer.first_code(low)) * step, y)


def test_what_is_never_negative_gets_the_whole_grid() -> None:
    x = INPUTS["never negative"]
    for kind in (lambda: StaticQuantizer(3, "max"), lambda: MovingRangeQuantizer(3)):
        quantizer = kind().fit(x)
        assert not quantizer.signed
        assert float(quantizer.low) == 0
        assert quantizer(x).max() == pytest.approx(float(x.max()), rel=1e-6)
        assert (quantizer(x) == 0).any()
    learned = LearnedStepQuantizer(3).fit(x)
    assert (learned.levels.low, learned.levels.high) == (0, 7)
    assert LearnedStepQuantizer(3).fit(INPUTS["signed"]).levels == (-4, 3)


@pytest.mark.parametrize(
    ("rows", "shape"), [("last", (3, 5, 7)), ("last", (6, 4)), ("column", (2, 3, 4, 6)), ("sample", (4, 3, 5, 5))]
)
@pytest.mark.parametrize("bits", [2, 8])
def test_ranges_of_tokens_equal_a_loop_over_rows(rows: Rows, shape: tuple[int, ...], bits: int) -> None:
    x = drawn(*shape) * drawn(shape[0], *[1] * (len(shape) - 1), seed=3)
    x[0] = x[0].abs()
    expected = torch.empty_like(x)
    over = {"last": shape[-1:], "column": shape[-2:-1], "sample": shape[-3:]}[rows]
    moved, target = (each.transpose(-1, -2) if rows == "column" else each for each in (x, expected))
    size = math.prod(over)
    flat = moved.reshape(-1, size)
    result = torch.empty_like(flat)
    for place, row in enumerate(flat):
        low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
        step = torch.tensor(high - low) / (2**bits - 1)
        zero = round(-low / float(step))
        for index, value in enumerate(row):
            result[place, index] = step * (min(max(round(float(value / step)), -zero), 2**bits - 1 - zero))
    target.copy_(result.reshape(moved.shape))
    torch.testing.assert_close(TokenQuantizer(bits, rows)(x), expected, rtol=1e-5, atol=1e-6)


def test_steps_of_tokens_factor_out_of_a_product() -> None:
    a, b = drawn(2, 5, 8), drawn(2, 8, 6, seed=1)
    left, right = TokenQuantizer(4, "last"), TokenQuantizer(4, "column")
    (step_a, low_a, _), (step_b, low_b, _) = left.grid(a), right.grid(b)
    whole = (left.codes(a) + low_a) @ (right.codes(b) + low_b)
    torch.testing.assert_close(step_a * step_b * whole, left(a) @ right(b))


@pytest.mark.parametrize(("x", "lowest", "highest"), [(INPUTS["signed"], -8, 7), (INPUTS["never negative"], 0, 15)])
def test_a_learned_step_starts_and_moves_as_the_paper_says(x: Tensor, lowest: int, highest: int) -> None:
    quantizer = LearnedStepQuantizer(4).fit(x)
    start = 2 * x.abs().mean() / math.sqrt(highest)
    torch.testing.assert_close(quantizer.learned_step.detach(), start)
    with torch.no_grad():
        quantizer.learned_step.mul_(0.5)  # so that some values are clipped
    step = quantizer.learned_step.detach()
    given, weights = x.clone().requires_grad_(), drawn(*x.shape, seed=1)
    (quantizer(given) * weights).sum().backward()
    scaled = x / step
    inside = (scaled > lowest) & (scaled < highest)
    pull = torch.where(inside, scaled.round() - scaled, scaled.clamp(lowest, highest))
    factor = 1 / math.sqrt(x[0].numel() * highest)
    torch.testing.assert_close(quantizer.learned_step.grad, (weights * pull).sum() * factor, rtol=1e-4, atol=1e-6)
    clear = ((scaled - lowest).abs() > 1e-3) & ((scaled - highest).abs() > 1e-3)
    assert given.grad is not None
    torch.testing.assert_close(given.grad[clear], (weights * inside)[clear], rtol=1e-6, atol=0)
    assert (~inside).any()
    assert inside.any()


def test_a_learned_step_stays_above_its_least_value() -> None:
    quantizer = LearnedStepQuantizer(4).fit(INPUTS["signed"])
    with torch.no_grad():
        quantizer.learned_step.fill_(-1.0)
    quantizer.project()
    assert float(quantizer.learned_step.detach()) == pytest.approx(1e-5)


def test_a_moving_range_follows_training_batches_and_no_others() -> None:
    first, second = INPUTS["signed"], 3 * drawn(16, 40, seed=2)
    quantizer = MovingRangeQuantizer(4, momentum=0.25).fit(first)
    low, high = first.min(), first.max()
    assert (quantizer.low, quantizer.high) == (low, high)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.codes(second)
    quantizer.eval()(second)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.train()(second)
    torch.testing.assert_close(quantizer.low, low + 0.25 * (second.min() - low))
    torch.testing.assert_close(quantizer.high, high + 0.25 * (second.max() - high))
    held = copy.deepcopy(quantizer.state_dict())
    for value in (math.inf, -math.inf, math.nan):
        quantizer(torch.cat([second, torch.full((1, 40), value)]))
        assert all(torch.equal(each, held[name]) for name, each in quantizer.state_dict().items())


EDGES = {
    "constant": torch.full((4, 6), 2.5),
    "constant below 0": torch.full((4, 6), -2.5),
    "all zero": torch.zeros(4, 6),
    "empty": torch.zeros(0, 6),
    "one value": torch.tensor([[3.0]]),
    "largest": torch.tensor([[LARGE, -LARGE, 1.0, 0.0]]),
    "subnormal": torch.tensor([[1e-42, -1e-42, 0.0]]),
    "one outlier": torch.cat([drawn(1, 9), torch.tensor([[1e30]])], dim=1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x", EDGES.values(), ids=list(EDGES))
def test_finite_inputs_at_the_edge_give_finite_values(kind: Callable[[int], ActivationQuantizer], x: Tensor) -> None:
    for bits in (2, 8):
        quantizer = kind(bits)
        quantizer = quantizer.fit(x) if quantizer.takes_values else quantizer
        given = x.clone().requires_grad_()
        for mode in (True, False):
            y = quantizer.train(mode)(given)
            assert y.isfinite().all()
            assert y.shape == x.shape
        y.sum().backward()
        assert given.grad is not None
        assert given.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_does_not_spread(kind: Callable[[int], ActivationQuantizer]) -> None:
    quantizer = kind(4)
    quantizer = quantizer.fit(INPUTS["signed"]) if quantizer.takes_values else quantizer
    x = INPUTS["signed"].clone()
    x[0, 0], x[1, 1], x[2, 2] = math.inf, -math.inf, math.nan
    y = quantizer.eval()(x)
    row = getattr(quantizer, "rows", "") == "last"
    assert y[2, 2].isnan()
    assert y[:2].isfinite().all() or not row
    assert y[3:, 3:].isfinite().all()
    fitted = kind(4)
    if fitted.takes_values:
        fitted.fit(x[:2])  # infinities are left out
        assert fitted(INPUTS["signed"]).isfinite().all()
        with pytest.raises(UserError, match="NaN"):
            kind(4).fit(x)


@pytest.mark.parametrize("kind", WITH_VALUES)
def test_loading_a_state_dict_counts_as_fitting(kind: Callable[[int], ActivationQuantizer]) -> None:
    for x in (INPUTS["signed"], INPUTS["never negative"]):
        fresh, fitted = kind(4), kind(4).fit(x).eval()
        with pytest.raises(UserError, match="is not fitted: call its fit"):
            fresh(x)
        assert "not fitted" in repr(fresh)
        fresh.load_state_dict(fitted.state_dict())
        assert torch.equal(fresh.eval()(x), fitted(x))
        assert fresh.signed == fitted.signed
        assert repr(fresh) == repr(fitted)
        assert "bits=4" in repr(fitted)
        assert torch.equal(copy.deepcopy(fitted)(x), fitted(x))


@pytest.mark.parametrize("x", [INPUTS["signed"], INPUTS["never negative"]])
def test_another_bit_width_keeps_the_range_or_the_step(x: Tensor) -> None:
    for kind in WITH_VALUES:
        trained = kind(4).fit(x).eval()
        assert trained.at_bits(4, "keep_step") is trained
        step = trained.grid(x).step.detach()
        for bits in (2, 8):
            kept, ranged = trained.at_bits(bits, "keep_step"), trained.at_bits(bits, "keep_range")
            assert (kept.bits, kept.signed, kept.training) == (bits, trained.signed, False)
            torch.testing.assert_close(kept.grid(x).step.detach(), step)
            if isinstance(trained, LearnedStepQuantizer):
                ends = [each.levels.high * each.learned_step.detach() for each in (trained, ranged)]  # type: ignore[union-attr, operator]
                torch.testing.assert_close(*ends)
            else:
                assert (ranged.low, ranged.high) == (trained.low, trained.high)
    assert TokenQuantizer(4, "column").at_bits(8, "keep_range").described() == "rows=column"


def test_the_default_quantizer_follows_the_configuration() -> None:
    seen = Observed.of(INPUTS["signed"])
    static = make_activation_quantizer(ActivationsConfig(range="max"), 4, seen)
    assert isinstance(static, StaticQuantizer)
    assert float(static.high) == float(INPUTS["signed"].max())
    clipped = make_activation_quantizer(ActivationsConfig(range="percentile", percentile=90), 4, seen)
    assert float(clipped.high) < float(static.high)  # type: ignore[arg-type]
    token = make_activation_quantizer(ActivationsConfig(granularity="token", range="max"), 4, rows="sample")
    assert isinstance(token, TokenQuantizer)
    assert (token.bits, token.rows) == (4, "sample")
    with pytest.raises(UserError, match="calibration"):
        make_activation_quantizer(ActivationsConfig(), 4)
    with pytest.raises(UserError, match="9 is no bit-width"):
        StaticQuantizer(9)
    with pytest.raises(UserError, match="must be finite"):
        StaticQuantizer(4).set_range(0.0, math.inf)


def layouts() -> dict[str, Tensor]:
    """The same (3, 4, 5, 6) in memory in several ways, and parts of larger tensors."""
    wide = drawn(3, 4, 5, 18)
    return {
        "contiguous": drawn(3, 4, 5, 6),
        "channels last": drawn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        "transposed": drawn(3, 4, 6, 5).transpose(-1, -2),
        "permuted": drawn(6, 3, 5, 4).permute(1, 3, 2, 0),
        "a part": wide[..., 6:12],
        "every third": wide[..., ::3],
        "expanded": drawn(3, 1, 5, 6).expand(3, 4, 5, 6),
        "double": drawn(3, 4, 5, 6).double(),
    }


@pytest.mark.parametrize("kind", [*KINDS, lambda bits: TokenQuantizer(bits, "sample")])
@pytest.mark.parametrize("name", list(layouts()))
def test_passes_equal_plain_operations_in_any_layout(
    kind: Callable[[int], ActivationQuantizer], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights = layouts()[name], drawn(3, 4, 5, 6, seed=1)
    quantizer = kind(3).eval()
    if quantizer.takes_values:
        quantizer.fit(0.7 * x.float().contiguous())
    found = []
    for serves in (True, False):
        if not serves:
            monkeypatch.setattr(dispatch, "serves", lambda *tensors, **more: False)
        given = x.detach().requires_grad_()
        quantizer.zero_grad()
        y = quantizer(given)
        (y * weights).sum().backward()
        found.append([y.detach(), given.grad, *(each.grad for each in quantizer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_and_transformed_networks_get_plain_operations(kind: Callable[[int], ActivationQuantizer]) -> None:
    quantizer = kind(4)
    quantizer = (quantizer.fit(INPUTS["signed"]) if quantizer.takes_values else quantizer).eval()
    x = drawn(3, 5, 6)
    exported = torch.export.export(quantizer, (x,)).module()
    assert torch.equal(exported(x), quantizer(x))
    assert torch.equal(torch.func.vmap(quantizer)(x), quantizer(x))


@pytest.mark.parametrize("kind", [LearnedStepQuantizer, MovingRangeQuantizer])
def test_compiled_training_is_the_same(kind: Callable[[int], ActivationQuantizer]) -> None:
    plain = kind(4).fit(INPUTS["signed"])
    compiled = torch.compile(copied := copy.deepcopy(plain), backend="aot_eager", fullgraph=True)
    for scale in (1.0, 2.0):
        ends = [(scale * INPUTS["signed"]).requires_grad_() for _ in range(2)]
        outputs = [each(end) for each, end in zip((plain, compiled), ends, strict=True)]
        assert torch.equal(*outputs)
        for output in outputs:
            (output * drawn(16, 40, seed=1)).sum().backward()
        torch.testing.assert_close(ends[0].grad, ends[1].grad, rtol=1e-6, atol=0)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, copied.state_dict()[name]), name
