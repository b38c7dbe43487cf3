"""The options that samplers and pruners take in a sweep file: those of Optuna's classes that a file can hold.

Left out are functions and objects (`gamma`, `weights`, `constraints_func`, `independent_sampler`, ...), and `seed`:
samplers are seeded by `tune.seed` and the trial's number.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, ValidationError, model_validator

from harness.core.config_base import StrictConfig
from harness.core.errors import UserError
from harness.core.validation import explain

Probability = Annotated[float, Field(ge=0, le=1)]
#: Epochs, or a word for Optuna to find them.
Resource = Annotated[int, Field(strict=True, ge=1)] | Literal["auto"]


class Tpe(StrictConfig):
    """Options of tpe."""

    n_startup_trials: int = Field(10, ge=0, description="random trials of a cell before the first that is modelled")
    n_ei_candidates: int = Field(24, ge=1, description="candidates for a trial, of which the best is taken")
    multivariate: StrictBool | None = Field(None, description="model all dimensions together")
    group: StrictBool = Field(False, description="model together what trials share; not with multivariate: false")
    constant_liar: StrictBool = Field(True, description="count running trials as bad ones")
    prior_weight: float | None = Field(None, gt=0, description="of the prior, against that of a trial")
    consider_magic_clip: StrictBool | None = Field(None, description="limit how narrow a trial's kernel gets")
    consider_endpoints: StrictBool | None = Field(None, description="let the ends of a range limit kernels")


class Gp(StrictConfig):
    """Options of gp."""

    n_startup_trials: int = Field(10, ge=0, description="random trials of a cell before the first that is modelled")
    deterministic_objective: StrictBool = Field(False, description="model no noise")


class Nsgaii(StrictConfig):
    """Options of nsgaii."""

    population_size: int = Field(50, ge=2, description="trials of a generation")
    mutation_prob: Probability | None = Field(None, description="of a dimension; null: 1 / dimensions")
    crossover_prob: Probability = Field(0.9, description="of a trial having two parents")
    swapping_prob: Probability = Field(0.5, description="of a dimension coming from the second parent")


class Median(StrictConfig):
    """Options of median."""

    n_startup_trials: int = Field(5, ge=0, description="trials of a cell that end before any is pruned")
    n_warmup_steps: int = Field(0, ge=0, description="epochs of a trial without pruning")
    interval_steps: int = Field(1, ge=1, description="epochs from one check to the next")
    n_min_trials: int = Field(1, ge=1, description="trials that reached an epoch, before one is pruned there")


class Percentile(Median):
    """Options of percentile."""

    percentile: float = Field(ge=0, le=100, description="of trials, the best, that are kept")


class SuccessiveHalving(StrictConfig):
    """Options of successive_halving."""

    min_resource: Resource = Field("auto", description="epochs that every trial gets")
    reduction_factor: int = Field(4, ge=2, description="one of so many trials goes on")
    min_early_stopping_rate: int = Field(0, ge=0, description="how often the first check is put off, by that factor")
    bootstrap_count: int = Field(0, ge=0, description="trials at a check before any is pruned")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.bootstrap_count and self.min_resource == "auto":
            raise ValueError(f"bootstrap_count: {self.bootstrap_count} needs min_resource as a number")
        return self


class Hyperband(StrictConfig):
    """Options of hyperband."""

    min_resource: int = Field(1, ge=1, description="epochs that every trial gets")
    max_resource: Resource = Field("auto", description="epochs of a whole run")
    reduction_factor: int = Field(3, ge=2, description="one of so many trials goes on")
    bootstrap_count: int = Field(0, ge=0, description="trials at a check before any is pruned")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.bootstrap_count and self.max_resource == "auto":
            raise ValueError(f"bootstrap_count: {self.bootstrap_count} needs max_resource as a number")
        if self.max_resource != "auto" and self.max_resource < self.min_resource:
            raise ValueError(f"max_resource: {self.max_resource} is below min_resource, {self.min_resource}")
        return self


class NoOptions(StrictConfig):
    """No options."""


#: By kind and name; the harness' own samplers take none.
OPTIONS: Mapping[str, Mapping[str, type[StrictConfig]]] = {
    "sampler": {
        "random": NoOptions,
        "grid": NoOptions,
        "qmc": NoOptions,
        "tpe": Tpe,
        "gp": Gp,
        "nsgaii": Nsgaii,
    },
    "pruner": {
        "none": NoOptions,
        "median": Median,
        "percentile": Percentile,
        "successive_halving": SuccessiveHalving,
        "hyperband": Hyperband,
    },
}


def checked_options(kind: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a sampler or pruner as Optuna gets them: those given, and no defaults.

    Raises UserError naming the option, its value and what is legal.
    """
    options = OPTIONS[kind].get(name, NoOptions)
    try:
        return options.model_validate(dict(given)).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise UserError(explain(error, options, f"{kind} {name!r}: ")) from None
