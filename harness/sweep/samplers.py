"""Optuna's samplers and pruners by the names that sweep files use."""

import warnings
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from harness.core.errors import UserError
from harness.core.seeding import sub_seed
from harness.sweep.algorithms import checked_options
from harness.sweep.config import Algorithm, SweepConfig
from harness.sweep.search_space import STATIC_SAMPLERS, Choices, Range, Scalar, draw

if TYPE_CHECKING:
    from harness.sweep.cells import Cell

#: Pruners that note in each trial, as they are asked, what others are compared with.
NOTING_PRUNERS = ("successive_halving", "hyperband")

optuna.logging.set_verbosity(optuna.logging.WARNING)  # progress is shown by the launch


def make_sampler(spec: SweepConfig, study_name: str, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for one trial, seeded by study and trial number: two workers never repeat a draw."""
    seed = sub_seed(spec.tune.seed, "sampler", study_name, number) % 2**32
    kinds = {
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "nsgaii": optuna.samplers.NSGAIISampler,
    }
    return _made("sampler", spec.sampler, kinds.get(spec.sampler.name, optuna.samplers.RandomSampler), seed=seed)


def make_pruner(spec: SweepConfig) -> optuna.pruners.BasePruner:
    """The pruner by name; NopPruner for none."""
    kinds = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return _made("pruner", spec.pruner, kinds[spec.pruner.name])


def known_params(spec: SweepConfig, cell: "Cell", index: int) -> dict[str, Scalar] | None:
    """The parameters of trial `index` where the sampler's draws do not depend on other trials, else None."""
    if spec.sampler.name not in STATIC_SAMPLERS:
        return None
    return draw(cell.search, spec.sampler.name, sub_seed(spec.tune.seed, "sampler", cell.id), index)


def _made(kind: str, algorithm: Algorithm, build: Any, **extra: Any) -> Any:
    options = checked_options(kind, algorithm.name, algorithm.options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return build(**options, **extra)
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind} {algorithm.name!r}: {error}") from None


def check_algorithms(spec: SweepConfig) -> None:
    """Refuse sampler and pruner options that Optuna does not take. Raises UserError."""
    make_pruner(spec)
    make_sampler(spec, spec.name, 0)


def distribution(dimension: Choices | Range) -> BaseDistribution:
    """A search dimension as Optuna has it."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.choices)
    step, high = None, dimension.high
    if dimension.grid is not None:  # Optuna would find the last value by itself, and warn
        step, count = dimension.grid
        high = float(Decimal(repr(dimension.low)) + (count - 1) * Decimal(repr(step)))
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(high), log=dimension.log, step=int(step or 1))
    return FloatDistribution(dimension.low, high, log=dimension.log, step=step)
