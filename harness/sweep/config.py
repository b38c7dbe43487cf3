"""SweepConfig: a sweep file, strictly checked."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from harness.core import registry
from harness.core.config_base import StrictConfig, by_name, listed
from harness.core.errors import UserError, masked, unknown
from harness.core.layer_points import LayerPoints
from harness.core.metric import Metric
from harness.core.validation import explain
from harness.sweep import objective
from harness.sweep.algorithms import checked_options
from harness.sweep.components import located_sweep, tasks_of
from harness.sweep.content import NOT_SET, content
from harness.sweep.objective import AnyObjective
from harness.sweep.search_space import STATIC_SAMPLERS, Dimension
from harness.tasks.base import DEFAULT, Task, find
from harness.training.config import MethodStack, RunConfig

SAMPLERS = (*STATIC_SAMPLERS, "tpe", "gp", "nsgaii")
DATABASES = ("postgresql", "mysql", "sqlite")
PRUNERS = ("none", "median", "percentile", "successive_halving", "hyperband")


class Algorithm(StrictConfig):
    """A sampler or pruner by name, with the options of Optuna's class: `{name: tpe, n_startup_trials: 4}`."""

    model_config = StrictConfig.model_config | {"extra": "allow"}
    name: str = Field(
        description=f"a sampler ({', '.join(SAMPLERS)}) or a pruner ({', '.join(PRUNERS)}); "
        "`python -m harness.config NAME` prints its options"
    )

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Tune(StrictConfig):
    """Tuning: trials of every cell (the same budget for all) and the seed they train with."""

    trials: int = Field(ge=0, le=100_000, description="per cell; 0: no tuning, final runs use the values as written")
    seed: int = Field(1000, ge=0, lt=2**32, description="of all trials and of the sampler; must not be a final seed")


class Final(StrictConfig):
    """Final runs: the chosen parameters of every cell, once per seed, tested."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        min_length=1, description="one final run per cell and seed"
    )


class CellConfig(StrictConfig):
    """One method, or stack of methods, and what varies: `grid` multiplies cells, `search` is tuned within one."""

    methods: MethodStack = Field(description="one method or an ordered stack, by name or {name: ..., setting: ...}")
    set: dict[str, Any] = Field(default_factory=dict, description="run settings of this cell, by dotted key")
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="dotted key: list of values; one cell for each combination"
    )
    search: dict[str, Dimension] = Field(
        default_factory=dict, description="what trials tune; dotted key: range or list of values"
    )


class SweepConfig(StrictConfig):
    """A sweep file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the sweep and of its folder below the root"
    )
    label: str | None = Field(
        None, pattern=r"^[^\n]{1,60}$", description="shown beside model and data in figures and tables"
    )
    base: dict[str, Any] = Field(description="run settings shared by all cells")
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="dotted key: list of values; multiplies every cell, for example by models"
    )
    cells: tuple[CellConfig, ...] = Field(min_length=1, description="methods to compare, with what each tunes")
    tune: Tune = Field(description="the tuning phase")
    final: Final = Field(description="the test phase")
    objective: Annotated[tuple[AnyObjective, ...], BeforeValidator(listed)] = Field(
        ("target",),
        min_length=1,
        description="what tuning optimizes on the validation split: target, worst, mean, val/acc_w3, val/loss_w2, ...; "
        "{name: osc/frequency, direction: minimize} of what else runs report",
    )
    tie_break: Literal["loss", "first"] = Field(
        "loss",
        description="among trials of equal objective: loss (lower validation loss, then lowest number), or first "
        "(lowest number)",
    )
    sampler: Annotated[Algorithm, BeforeValidator(by_name)] = Field(
        Algorithm(name="tpe"), description=f"of trials: {', '.join(SAMPLERS)}"
    )
    pruner: Annotated[Algorithm, BeforeValidator(by_name)] = Field(
        Algorithm(name="none"), description=f"ends bad trials early: {', '.join(PRUNERS)}"
    )
    max_retries: int = Field(1, ge=0, le=100, description="how often a run that fails is tried again")
    max_lost: int = Field(10, ge=0, le=1000, description="workers that may die during a run before it counts as failed")
    keep_best: Literal["finals", "all", "none"] = Field(
        "finals", description="runs that keep best.safetensors, which harness.evaluate needs"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="null: one per GPU slot or CPU core; on Slurm as many as the profile lets run at once",
    )
    runs_per_gpu: int = Field(1, ge=1, le=64, description="runs that share a GPU; a Slurm profile's value comes first")
    storage: str = Field("journal", description="of the queue: journal (a file), or a database's URL without password")
    changed_code: Literal["warn", "refuse"] = Field(
        "warn", description="what a worker does whose code differs from the launch's"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if found := list(self._contradictions()):
            raise ValueError("\n".join(found))
        return self

    def _contradictions(self) -> Iterator[str]:
        """What is wrong with keys that are legal by themselves, a line each. Sets the checked objectives."""
        yield from _algorithm_mistakes("sampler", self.sampler, SAMPLERS)
        yield from _algorithm_mistakes("pruner", self.pruner, PRUNERS)
        try:
            points, further = self._points_by_layer(), [each.key for each in self.task.further]
            goals = tuple(objective.check(each, self.metric, points, further) for each in self.objective)
            object.__setattr__(self, "objective", goals)
        except ValueError as error:
            yield str(error)
        yield from _storage_mistakes(self.storage)
        if len(set(self.final.seeds)) < len(self.final.seeds):
            yield f"final.seeds: {list(self.final.seeds)} names a seed twice"
        if self.tune.seed in self.final.seeds:
            yield f"tune.seed: {self.tune.seed} is also a final seed; tuning must not see those"
        if len(self.objective) > 1 and self.pruner.name != "none":
            yield "pruner: Optuna cannot prune trials of several objectives; use pruner: none"

    @property
    def task(self) -> Task:
        """The task of its data, with all further figures that a run measures.

        Raises ValueError for data sets of several tasks: trials cannot be compared.
        """
        sections = [each for each in self._written("data") if isinstance(each, dict)]
        names = [*self._written("data", "name"), *(each.get("name") for each in sections)]
        tasks = tasks_of(map(str, names), self._written("tasks"))
        if len(set(tasks.values())) > 1:
            listed = ", ".join(f"{name} ({task.name})" for name, task in tasks.items())
            raise ValueError(f"base.data: {listed}: data sets of one sweep have one task")
        lists = [each for each in self._written("deploy", "figures") if isinstance(each, list | tuple)]
        task = next(iter(tasks.values()), find(DEFAULT))
        asked = {str(key) for each in lists for key in each}  # of which a cell refuses what is not legal
        return task.measuring([each.key for each in task.further if each.key in asked])

    @property
    def metric(self) -> Metric:
        """That of its task."""
        return self.task.metric

    @property
    def objectives(self) -> list[str]:
        """What tuning optimizes, by name."""
        return [each if isinstance(each, str) else each.name for each in self.objective]

    def _written(self, section: str, *key: str) -> list[Any]:
        """Every value that the file has for a run setting, in `base`, a grid or a cell's `set`; legal or not."""
        place, dotted = self.base.get(section), ".".join((section, *key))
        values = [] if place is None else [place]
        if key:
            values = [place[key[0]]] if isinstance(place, dict) and key[0] in place else []
        for grid in (self.grid, *(cell.grid for cell in self.cells)):
            values += grid.get(dotted, ())
        return [*values, *(cell.set[dotted] for cell in self.cells if dotted in cell.set)]

    def _points_by_layer(self) -> list[LayerPoints]:
        """Those of deploy.bits, wherever the file has it; what is not legal is refused with its cell."""
        lists, points = self._written("deploy", "bits"), []
        for written in (each for bits in lists if isinstance(bits, list | tuple) for each in bits):
            with suppress(UserError):
                points.append(LayerPoints.of(written))
        return points


def _algorithm_mistakes(kind: str, algorithm: Algorithm, legal: Sequence[str]) -> Iterator[str]:
    """What is wrong with a sampler or a pruner, as far as it can be said without Optuna."""
    name, options = algorithm.name, algorithm.options
    if name not in legal:
        yield str(unknown(kind, name, legal))
    elif kind == "sampler" and "seed" in options:
        yield f"sampler {name!r}: seed: {options['seed']!r}: use tune.seed"
    elif kind == "sampler" and name in STATIC_SAMPLERS and options:
        yield f"sampler {name!r} takes no options, got {sorted(options)}"
    else:
        try:
            checked_options(kind, name, options)
        except UserError as error:
            yield from str(error).splitlines()


def _storage_mistakes(where: str) -> Iterator[str]:
    """What is neither a journal nor a database's URL, and a password in it, which belongs in no file."""
    if where == "journal":
        return
    scheme, separator, rest = where.partition("://")
    if not separator or scheme.partition("+")[0] not in DATABASES:
        legal = ("journal", *(f"{name}://..." for name in DATABASES))
        yield f"storage: {masked(where)!r} cannot hold a queue (legal: {', '.join(legal)})"
    elif ":" in rest.rpartition("@")[0] or re.search(r"[?&](password|passwd|passfile)=", rest):
        yield (
            f"storage: {masked(where)!r} holds a password, which belongs in no file: write it as user@host and put the "
            "password in the environment as HARNESS_STORAGE_PASSWORD"
        )


def read_sweep(path: Path, replaced: Iterable[str] = ()) -> SweepConfig:
    """The sweep in a file, with `key=value` overrides: dotted keys of the file or of its `base`, values in YAML."""
    try:
        spec = SweepConfig.model_validate(located_sweep(content(path, replaced), path))
    except ValidationError as error:
        raise UserError(f"{path}: " + explain(error, SweepConfig)) from None
    for _, mistake in name_mistakes(spec.base):  # while torch is still not imported
        raise UserError(f"{path}: {mistake}" if mistake.startswith("base: ") else mistake)
    return spec


def name_mistakes(base: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys of `base` that are unknown, or that name an unknown network or data set, with what is wrong."""
    legal = [name for name in RunConfig.model_fields if name not in NOT_SET]
    for key in base:
        if key not in legal:
            yield key, f"base: {unknown('setting', key, legal)}"
    for kind, key in (("model", "model"), ("data set", "data")):
        section = base.get(key)
        try:
            if isinstance(section, dict) and "name" in section:
                registry.check(kind, str(section["name"]))
        except UserError as error:
            yield key, str(error)


def from_json(raw: Mapping[str, Any]) -> SweepConfig:
    """A sweep as its sweep.json has it. An earlier version, which wrote no `tie_break`, chose the first of equals."""
    return SweepConfig.model_validate({"tie_break": "first", **raw})


def plain(spec: SweepConfig) -> dict[str, Any]:
    """A sweep as JSON values, for sweep.json and for comparison."""
    loaded: dict[str, Any] = json.loads(spec.model_dump_json())
    return loaded
