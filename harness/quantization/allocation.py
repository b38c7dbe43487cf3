"""Which of its options each layer gets, under limits on what all of them use: by an integer program, or at random.

A program has L layers with K_l options each. Option k of layer l has a score (lower is better) and uses some of R
resources; uses are not negative. With z_lk = 1 for the option that a layer gets and 0 for the others:

    min sum_lk z_lk score_lk    with    sum_k z_lk = 1 for each l,    sum_lk z_lk use_rlk <= limit_r for each r
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import torch

from harness.core.errors import UserError

#: How far a sum may be above its limit, as a part of it: the solver's own tolerance.
TOLERANCE = 1e-6
#: The solver ends at a gap of 1e-6 in what it is given, so scores are made large: it tells 1e-10 of their range apart.
_RANGE = 1e4


@dataclass(frozen=True)
class Program:
    """scores: float64 (K_l,) of each layer. uses: float64 (R, K_l) of each layer. limits: float64 (R,)."""

    scores: Sequence[np.ndarray]
    uses: Sequence[np.ndarray]
    limits: np.ndarray

    def score(self, chosen: Sequence[int]) -> float:
        """The sum that the program minimises, of one option for each layer."""
        return float(sum(score[place] for score, place in zip(self.scores, chosen, strict=True)))

    def used(self, chosen: Sequence[int]) -> np.ndarray:
        """The sum of each resource, (R,)."""
        return np.sum([use[:, place] for use, place in zip(self.uses, chosen, strict=True)], axis=0)

    def fits(self, chosen: Sequence[int]) -> bool:
        """Whether no resource is used beyond its limit."""
        return bool((self.used(chosen) <= self.limits * (1 + TOLERANCE)).all())

    def solved(self, fixed: Mapping[int, int] = MappingProxyType({})) -> list[int]:
        """The options of least score, one for each layer. Raises UserError where none fit.

        fixed: layers, by place, whose option is given. By branch and bound (HiGHS), to the optimum; of equal ones
        always the same.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # a third of a second, only where bits are allocated
        from scipy.sparse import csr_matrix

        counts = [len(score) for score in self.scores]
        scores = np.concatenate(self.scores)
        spread = float(np.ptp(scores)) or 1.0
        owner = np.repeat(np.arange(len(counts)), counts)
        each_once = csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
        starts = np.cumsum([0, *counts])
        given = np.zeros(len(owner))
        given[[starts[layer] + option for layer, option in fixed.items()]] = 1
        limits = np.where(self.limits > 0, self.limits, 1.0)
        uses = np.concatenate(self.uses, axis=1) / limits[:, None]
        found = milp(
            (scores - scores.min()) / spread * _RANGE,
            integrality=np.ones(len(owner)),
            bounds=Bounds(given, 1),
            constraints=[LinearConstraint(each_once, 1, 1), LinearConstraint(uses, -np.inf, self.limits / limits)],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise UserError(f"no choice of one option for each layer is within the limits ({found.message})")
        return [int(found.x[start:end].argmax()) for start, end in pairwise(starts)]


def random_bits(sizes: Sequence[int], candidates: Sequence[int], mean: float, generator: torch.Generator) -> list[int]:
    """Bits for each layer, drawn at random, whose mean over all of the layers' numbers is as near to a mean from below.

    sizes: numbers of each layer. candidates: ascending. All begin with the first candidate; then random layers go on to
    their next one, until none can. Raises UserError where the first is too much.
    """
    chosen = [0] * len(sizes)
    left = mean * sum(sizes) - candidates[0] * sum(sizes)
    if left < 0:
        raise UserError(f"{candidates[0]} bits for each layer are more than a mean of {mean}")

    def more(layer: int) -> float:
        """What the next candidate would add; infinite after the last."""
        place = chosen[layer] + 1
        return sizes[layer] * (candidates[place] - candidates[place - 1]) if place < len(candidates) else float("inf")

    while able := [layer for layer in range(len(sizes)) if more(layer) <= left]:
        layer = able[int(torch.randint(len(able), (), generator=generator))]
        left -= more(layer)
        chosen[layer] += 1
    return [candidates[place] for place in chosen]
