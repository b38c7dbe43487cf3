"""Options of samplers and pruners: checked when the sweep is launched, by name, type and range."""

import inspect
import warnings
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from harness.core.errors import UserError
from harness.sweep.algorithms import OPTIONS, checked_options
from harness.sweep.config import SweepConfig
from harness.sweep.samplers import check_algorithms, make_pruner, make_sampler

#: What Optuna's classes take besides, and a sweep file cannot hold, or should not: see harness/sweep/algorithms.py.
LEFT_OUT = {
    "tpe": {"consider_prior", "gamma", "weights", "seed", "warn_independent_sampling", "constraints_func"},
    "gp": {"seed", "independent_sampler", "constraints_func", "warn_independent_sampling"},
    "nsgaii": {
        *("mutation", "crossover", "seed", "constraints_func", "elite_population_selection_strategy"),
        *("child_generation_strategy", "after_trial_strategy"),
    },
}


def spec(**changes: Any) -> SweepConfig:
    raw = {
        "name": "x",
        "base": {},
        "cells": [{"methods": "ste", "search": {"train.learning_rate": {"low": 1e-4, "high": 1e-2}}}],
        "tune": {"trials": 2},
        "final": {"seeds": [0]},
    }
    return SweepConfig.model_validate(raw | changes)


ALL = [(kind, name) for kind, options in OPTIONS.items() for name in options]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_options_are_those_of_optunas_class_with_its_defaults(kind: str, name: str) -> None:
    made = make_sampler(spec(sampler=name), "x", 0) if kind == "sampler" else None
    if made is None:
        made = make_pruner(spec(pruner={"name": name, **({"percentile": 25} if name == "percentile" else {})}))
    if name in ("none", "random", "grid", "qmc"):  # no class of Optuna's
        assert not OPTIONS[kind][name].model_fields
        return
    taken = dict(inspect.signature(type(made).__init__).parameters)
    del taken["self"]
    fields = OPTIONS[kind][name].model_fields
    assert set(fields) <= set(taken)
    if not optuna.__version__.startswith("5."):
        pytest.skip("what is left out, and the defaults, are those of Optuna 5")
    assert set(taken) - set(fields) == LEFT_OUT.get(name, set())
    for option, field in fields.items():
        expected = inspect.Parameter.empty if field.is_required() else field.default
        assert taken[option].default == expected, option


@pytest.mark.parametrize(
    ("kind", "algorithm", "said"),
    [
        ("sampler", {"name": "tpe", "gamma": 0.1}, "sampler 'tpe': gamma: unknown key"),
        ("sampler", {"name": "tpe", "weights": [1, 2]}, "sampler 'tpe': weights: unknown key"),
        ("sampler", {"name": "tpe", "n_ei_candidates": 0}, "n_ei_candidates: 0: Input should be greater than or equal"),
        ("sampler", {"name": "tpe", "constraints_func": "f"}, "constraints_func: unknown key"),
        ("sampler", {"name": "gp", "independent_sampler": "tpe"}, "independent_sampler: unknown key"),
        ("sampler", {"name": "tpe", "n_startup_trials": 2.5}, "n_startup_trials: 2.5"),
        ("sampler", {"name": "tpe", "n_startup_trials": True}, "n_startup_trials: True: True is not a number"),
        ("sampler", {"name": "tpe", "multivariate": "yes"}, "multivariate: 'yes': Input should be a valid boolean"),
        ("sampler", {"name": "tpe", "group": True, "multivariate": False}, "sampler 'tpe': ``group`` option"),
        ("sampler", {"name": "nsgaii", "population_size": 1}, "population_size: 1"),
        ("sampler", {"name": "nsgaii", "mutation_prob": 1.5}, "mutation_prob: 1.5"),
        (
            "sampler",
            {"name": "nsgaii", "crossover": "uniform"},
            "crossover: unknown key; did you mean 'crossover_p",
        ),
        ("pruner", {"name": "hyperband", "min_resource": 0}, "min_resource: 0"),
        ("pruner", {"name": "hyperband", "reduction_factor": 1}, "reduction_factor: 1"),
        (
            "pruner",
            {"name": "hyperband", "min_resource": 9, "max_resource": 3},
            "max_resource: 3 is below",
        ),
        ("pruner", {"name": "hyperband", "bootstrap_count": 2}, "bootstrap_count: 2 needs max_resource"),
        ("pruner", {"name": "successive_halving", "min_resource": "car"}, "min_resource"),
        ("pruner", {"name": "successive_halving", "min_resource": True}, "min_resource"),
        ("pruner", {"name": "successive_halving", "bootstrap_count": 2}, "bootstrap_count: 2 needs min_resource"),
        ("pruner", {"name": "percentile", "percentile": 101}, "percentile: 101"),
        ("pruner", {"name": "median", "interval_steps": 0}, "interval_steps: 0"),
    ],
)
def test_a_wrong_option_is_refused_at_launch(kind: str, algorithm: dict[str, Any], said: str) -> None:
    with pytest.raises((UserError, ValidationError)) as refused:  # with the file, or by Optuna
        check_algorithms(spec(**{kind: algorithm}))
    assert said in str(refused.value)


def test_legal_options_reach_optuna() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make_sampler(spec(sampler={"name": "tpe", "n_ei_candidates": 5.0, "prior_weight": 2}), "x", 0)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert sampler._n_ei_candidates == 5
    pruner = make_pruner(spec(pruner={"name": "hyperband", "max_resource": 9}))
    assert pruner._max_resource == 9  # type: ignore[attr-defined]
    assert checked_options("pruner", "median", {"n_min_trials": 3}) == {"n_min_trials": 3}, "no defaults"
