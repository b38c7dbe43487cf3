"""The integer program against brute force, its limits, and random allocations."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from harness.core.errors import UserError
from harness.quantization.allocation import Program, random_bits

BITS = np.array([2, 3, 4, 5, 6, 8])


def program(seed: int, layers: int = 4, mean: float = 4, resources: int = 1) -> Program:
    """Layers of random sizes whose scores fall about fourfold with each bit."""
    draws = np.random.default_rng(seed)
    sizes = draws.integers(50, 5000, (resources, layers)).astype(float)
    scores = [draws.lognormal(0, 1.5) * 4.0**-BITS * draws.lognormal(0, 0.3, len(BITS)) for _ in range(layers)]
    uses = [size[:, None] * BITS for size in sizes.T]
    return Program(scores, uses, mean * sizes.sum(axis=1))


@pytest.mark.parametrize("resources", [1, 2])
@pytest.mark.parametrize("mean", [2.0, 3.0, 4.0, 5.5])
def test_four_layers_equal_brute_force(mean: float, resources: int) -> None:
    for seed in range(3):
        given = program(seed, mean=mean, resources=resources)
        every = [each for each in product(range(len(BITS)), repeat=4) if given.fits(each)]
        best = min(every, key=given.score)
        assert tuple(given.solved()) == best, seed


def test_a_larger_budget_is_never_worse() -> None:
    for seed in range(3):
        given = [program(seed, layers=12, mean=mean) for mean in np.arange(2, 8.1, 0.5)]
        scores = [each.score(each.solved()) for each in given]
        assert all(later <= earlier for earlier, later in pairwise(scores)), seed
        assert scores[-1] < 0.01 * scores[0]


def test_it_is_ahead_of_uniform_and_random_allocations_of_the_same_size() -> None:
    for seed in range(3):
        given = program(seed, layers=10)
        found = given.score(given.solved())
        uniform = [int(np.flatnonzero(BITS == 4)[0])] * 10
        sizes = [int(use[0, 0] / BITS[0]) for use in given.uses]
        drawn = [random_bits(sizes, BITS.tolist(), 4, torch.Generator().manual_seed(i)) for i in range(20)]
        others = [uniform, *([int(np.flatnonzero(each == BITS)[0]) for each in bits] for bits in drawn)]
        assert all(given.fits(each) for each in [*others, given.solved()])
        assert all(found <= given.score(each) for each in others)
        assert found < 0.8 * given.score(uniform)


def test_options_that_are_given_stay() -> None:
    given = program(0)
    free = given.solved()
    held = given.solved({1: 0, 3: 2})
    assert held[1] == 0
    assert held[3] == 2
    assert given.fits(held)
    assert given.score(free) <= given.score(held)
    assert given.solved(dict(enumerate(free))) == free


def test_the_unit_of_scores_does_not_matter() -> None:
    """The solver ends at an absolute gap of 1e-6: in scores as small as that it would take any options that fit."""
    for seed in range(3):
        given = program(seed, layers=8)
        best = given.solved()
        for unit in (1e-9, 1e9):
            assert Program([unit * each for each in given.scores], given.uses, given.limits).solved() == best, seed


def test_scores_that_differ_little_beside_a_large_one_are_told_apart() -> None:
    given = program(0, layers=8)
    best = given.solved()
    scores = [1e-8 * each / np.ptp(np.concatenate(given.scores)) for each in given.scores]
    scores[0] = np.append(scores[0], 1.0)  # an option that nobody would take
    uses = [np.append(given.uses[0], [[0.0]], axis=1), *given.uses[1:]]
    other = Program(scores, uses, given.limits)
    assert other.score(other.solved()) <= other.score(best) + 1e-10


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="within the limits"):
        program(0, mean=1.9).solved()
    with pytest.raises(UserError, match=r"2 bits for each layer are more than a mean of 1\.5"):
        random_bits([10, 20], [2, 3], 1.5, torch.Generator())


def test_random_bits_use_the_budget_and_differ_by_seed() -> None:
    sizes = [100, 40, 300, 7, 55, 120, 90, 210]
    drawn = [random_bits(sizes, [2, 3, 4, 8], 4, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert drawn[0] == random_bits(sizes, [2, 3, 4, 8], 4, torch.Generator().manual_seed(0))
    assert len(set(map(tuple, drawn))) == 8
    for bits in drawn:
        mean = np.average(bits, weights=sizes)
        assert mean <= 4
        assert mean > 3.5
        assert set(bits) <= {2, 3, 4, 8}
