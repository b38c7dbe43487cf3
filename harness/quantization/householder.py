"""Block Householder quantization (BHQ) of gradients. Chen et al. 2020 (arXiv 2010.14298), with the released code.

A few samples of large gradients, the leaders, are each spread over a group of samples of small ones, so that no row of
the transformed gradient has a range as large as a leader's.
"""

import torch
from torch import Tensor

from harness.quantization.stochastic import MARGIN, SampleQuantizer


class HouseholderQuantizer(SampleQuantizer):
    """`S^-1 PSQ(S G)` with the S of `transforms`; PSQ alone for one sample or two, which have no groups."""

    def rounded(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        if len(rows) <= 2:
            return super().rounded(rows, generator)
        least, largest = rows.aminmax(dim=1)
        there, back = transforms(largest - least + MARGIN)
        return back @ super().rounded(there @ rows, generator)


def grouped(spans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of samples, from their ranges (N,) > 0, float64, N >= 3: one leader each, and at least one follower.

    With ranges v_1 >= ... >= v_N the first g samples lead, g the largest number for which the last leader's share of
    the followers, (N - g) v_g / sum_{i<=g} v_i, is above 1. Followers, in the order of their ranges, go to the leaders
    in turn, by rounded cumulative shares (halves away from 0).

    Returns, for each sample (N,): the number of its group, 0 for that of the largest range; whether it leads; and the
    range of the first follower in its group. Stays on the device of the ranges, without waiting for it.
    """
    ordered, order = spans.sort(descending=True, stable=True)
    sums, places = ordered.cumsum(0), torch.arange(len(spans), device=spans.device)
    enough = (places.flip(0) * ordered / sums)[:-1] > 1
    leaders = enough.sum(0, keepdim=True).clamp_(min=1)  # the shares fall with g
    ends = ((len(spans) - leaders) * sums / sums.gather(0, leaders - 1) + 0.5).floor()
    ends = torch.where(places < leaders, ends.nan_to_num_(0.0), torch.inf)  # NaN, of infinities, is no place
    follower = torch.searchsorted(ends, (places - leaders).double(), right=True).clamp_(max=len(spans) - 1)
    group = torch.where(places < leaders, places, follower)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]]).gather(0, group)  # the first followers, among all followers
    first_follower = ordered.gather(0, (leaders + starts).clamp_(max=len(spans) - 1).long())
    place = order.argsort()  # of each sample among the ordered ones
    return group[place], (places < leaders)[place], first_follower[place]


def transforms(spans: Tensor) -> tuple[Tensor, Tensor]:
    """S and its inverse, (N, N) fp32, from the ranges of the samples (N,), N >= 3.

    In a group of n samples, the leader first, Q = I - 2 u u^T / |u|^2 with u = 1/sqrt(n) - e_1 takes e_1 to
    1/sqrt(n) (1, ..., 1), and S = Q diag(s_1, s_2, ..., s_2), S^-1 = diag(1/s) Q, where for the ranges l_1 of the
    leader and l_2 of the first follower

        s_1 = (l_1 / sqrt(n))^(-1/3),    s_2 = (l_2 max|Q| / (n - 1))^(-1/3),    both times sqrt(1/s_1^2 + 1/s_2^2).
    """
    spans = spans.double()
    group, leads, first_follower = grouped(spans)
    same = group[:, None] == group
    size = same.sum(1).double()
    root = size.sqrt()
    leader_span = (same * leads * spans).sum(1)
    s_1 = (leader_span / root).pow(-1 / 3)
    s_2 = (first_follower * _largest_entry(size) / (size - 1)).pow(-1 / 3)
    scale = torch.where(leads, s_1, s_2) * (s_1.pow(-2) + s_2.pow(-2)).sqrt()
    u = 1 / root - leads.double()
    reflection = torch.eye(len(spans), device=spans.device) - same * (u[:, None] * u) / (1 - 1 / root)
    return (reflection * scale).float(), (reflection / scale[:, None]).float()


def _largest_entry(size: Tensor) -> Tensor:
    """max|Q| of a group of n >= 2 samples: of its first row, the other diagonal and, from n = 3 on, all else."""
    root = size.sqrt()
    other = 1 / (root * (root - 1))
    return torch.maximum(torch.maximum(1 / root, (1 - other).abs()), torch.where(size > 2, other, 0))
