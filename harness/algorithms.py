"""Optuna's samplers and pruners by the names that sweep files use."""

import warnings
from typing import Any

import optuna

from harness.errors import UserError
from harness.seeding import sub_seed
from harness.sweep import SweepSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial says nothing that progress does not


def make_sampler(spec: SweepSpec, study_name: str, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for one trial, seeded by study and trial number: two workers never repeat a draw."""
    seed = sub_seed(spec.tune.seed, "sampler", study_name, number) % 2**32
    kinds = {
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "nsgaii": optuna.samplers.NSGAIISampler,
    }
    return _made("sampler", spec.sampler, kinds.get(spec.sampler.name, optuna.samplers.RandomSampler), seed=seed)


def make_pruner(spec: SweepSpec) -> optuna.pruners.BasePruner:
    """The pruner by name; NopPruner for none."""
    kinds = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return _made("pruner", spec.pruner, kinds[spec.pruner.name])


def _made(kind: str, algorithm: Any, build: Any, **extra: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return build(**algorithm.options, **extra)
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind} {algorithm.name!r}: {error}") from None


def check_algorithms(spec: SweepSpec) -> None:
    """Refuse sampler and pruner options that Optuna does not take. Raises UserError."""
    make_pruner(spec)
    trial_run = optuna.create_study(sampler=make_sampler(spec, spec.name, 0))
    try:  # some options are looked at only when something is drawn
        trial_run.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
    except (TypeError, ValueError) as error:
        raise UserError(f"sampler {spec.sampler.name!r}: options {spec.sampler.options}: {error}") from None
