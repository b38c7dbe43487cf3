"""Block Householder quantization: groups as plain loops find them, S and its inverse, variance, limits."""

import math

import pytest
import torch
from test_stochastic import drawn
from torch import Tensor

from harness.quantization.householder import HouseholderQuantizer, grouped, transforms
from harness.quantization.stochastic import SampleQuantizer, TensorQuantizer


def by_loops(spans: list[float]) -> list[list[int]]:
    """The groups of samples, the leader first."""
    order = sorted(range(len(spans)), key=lambda sample: -spans[sample])
    ordered = [spans[sample] for sample in order]
    followers = 1
    while followers * ordered[-1 - followers] / sum(ordered[:-followers]) <= 1:
        followers += 1
    leaders = len(spans) - followers
    groups, given = [[sample] for sample in order[:leaders]], 0
    for number, group in enumerate(groups):
        end = math.floor(followers * sum(ordered[: number + 1]) / sum(ordered[:leaders]) + 0.5)
        group += order[leaders + given : leaders + end]
        given = end
    return groups


def some_spans(samples: int) -> list[Tensor]:
    """Ranges (N,): equal, even, heavy-tailed, and one of all."""
    drawn = torch.rand(samples, generator=torch.Generator().manual_seed(samples), dtype=torch.float64) + 1e-6
    one = torch.full((samples,), 1e-8, dtype=torch.float64)
    one[samples // 2] = 1.0
    return [torch.ones(samples, dtype=torch.float64), drawn, drawn**6, drawn**20, one]


@pytest.mark.parametrize("samples", [3, 4, 5, 8, 17, 64])
def test_groups_are_those_of_plain_loops(samples: int) -> None:
    for spans in some_spans(samples):
        group, leads, first_follower = grouped(spans)
        wanted = by_loops(spans.tolist())
        assert sum(map(len, wanted)) == samples
        for number, members in enumerate(wanted):
            assert len(members) >= 2
            assert sorted(members) == torch.where(group == number)[0].tolist()
            assert leads[members].tolist() == [True] + [False] * (len(members) - 1)
            assert torch.equal(first_follower[members], spans[members[1]].expand(len(members)))


def test_eight_equal_ranges_make_three_groups() -> None:
    group, leads, _ = grouped(torch.ones(8, dtype=torch.float64))
    assert torch.bincount(group).tolist() == [3, 2, 3]
    assert int(leads.sum()) == 3


@pytest.mark.parametrize("samples", [3, 8, 64])
def test_s_times_its_inverse_is_one(samples: int) -> None:
    for spans in some_spans(samples):
        there, back = (each.double() for each in transforms(spans))
        torch.testing.assert_close(there @ back, torch.eye(samples).double(), rtol=0, atol=1e-4)
        squares = there.T @ there  # of reflections times scales: diagonal
        torch.testing.assert_close(squares, squares.diagonal().diag(), rtol=1e-5, atol=1e-4 * float(squares.max()))


def test_s_of_one_group_in_numbers() -> None:
    """Three samples, the second leads: e_1 is taken to (1, 1, 1) / sqrt(3)."""
    there, back = transforms(torch.tensor([0.2, 9.0, 0.1]))
    off = 1 / (math.sqrt(3) * (math.sqrt(3) - 1))  # 0.789 is the largest entry of Q, 1 - 0.789 the diagonal
    leader, follower = (9 / math.sqrt(3)) ** (-1 / 3), (0.2 * off / 2) ** (-1 / 3)
    factor = math.sqrt(leader**-2 + follower**-2)
    root = 1 / math.sqrt(3)
    reflection = torch.tensor([[1 - off, root, -off], [root, root, root], [-off, root, 1 - off]])
    scale = factor * torch.tensor([follower, leader, follower])
    torch.testing.assert_close(there, reflection * scale, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(back, reflection / scale[:, None], rtol=1e-5, atol=1e-6)


def test_few_large_rows_cost_one_range_most_and_groups_least() -> None:
    gradient = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) / 1000
    gradient[[5, 20, 41]] *= 1000
    kinds = (TensorQuantizer, SampleQuantizer, HouseholderQuantizer)
    for bits in (3, 4, 5, 8):
        one, rows, groups = (float(drawn(kind(bits), gradient, 300).var(0).sum()) for kind in kinds)
        assert one > 1.5 * rows
        assert rows > 10 * groups


def test_each_row_of_the_transformed_gradient_has_few_levels() -> None:
    gradient = torch.randn(24, 400, generator=torch.Generator().manual_seed(0))
    gradient[[5, 20]] *= 100
    there, _ = transforms(gradient.amax(1) - gradient.amin(1) + 1e-8)
    found = there @ HouseholderQuantizer(3)(gradient)
    for row in found:
        assert len((row / (row.amax() - row.amin()) * 1000).round().unique()) <= 8


@pytest.mark.parametrize("samples", [1, 2])
def test_one_sample_or_two_have_no_groups(samples: int) -> None:
    gradient = torch.randn(samples, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(HouseholderQuantizer(3)(gradient), SampleQuantizer(3)(gradient))


def test_infinite_ranges_are_grouped_somehow() -> None:
    for bad in (torch.inf, torch.nan):
        for places in ([0], [1, 2], list(range(6))):
            spans = torch.ones(6, dtype=torch.float64)
            spans[places] = bad
            assert all(each.shape == (6,) for each in grouped(spans))
