"""SweepSpec: a sweep file, strictly checked, and the cells it expands to."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from harness import objective, overrides, registry, schema, yaml_file
from harness.config import MethodStack, RunConfig, complete, listed
from harness.errors import UserError, masked, unknown
from harness.explain import explain
from harness.knobs import Knobs
from harness.search import STATIC_SAMPLERS, Dimension, Space, corners

SAMPLERS = (*STATIC_SAMPLERS, "tpe", "gp", "nsgaii")
DATABASES = ("postgresql", "mysql", "sqlite")
PRUNERS = ("none", "median", "percentile", "successive_halving", "hyperband")


#: Settings of a run that a sweep decides elsewhere: tune.seed, final.seeds, cells.methods.
NOT_SET = ("seed", "phase", "methods")


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Algorithm(Knobs):
    """A sampler or pruner by name, with the options of Optuna's class: `{name: tpe, n_startup_trials: 4}`."""

    model_config = Knobs.model_config | {"extra": "allow"}
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Tune(Knobs):
    """Tuning: trials of every cell (the same budget for all) and the seed they train with."""

    trials: int = Field(ge=0, le=100_000, description="per cell; 0: no tuning, finals use the values as written")
    seed: int = Field(1000, ge=0, lt=2**32, description="of data split, weights and sampler; no final seed")


class Final(Knobs):
    """Final runs: the chosen parameters of every cell, once per seed, tested."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(min_length=1)


class CellKnobs(Knobs):
    """One method, or stack of methods, and what varies: `grid` multiplies cells, `search` is tuned within one."""

    methods: MethodStack
    set: dict[str, Any] = Field(default_factory=dict, description="run settings of this cell, by dotted key")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    search: dict[str, Dimension] = Field(default_factory=dict)


class SweepSpec(Knobs):
    """A sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    label: str | None = Field(
        None, pattern=r"^[^\n]{1,60}$", description="said by figures and tables beside model and data"
    )
    base: dict[str, Any] = Field(description="run settings shared by all cells")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="multiplies every cell, e.g. models")
    cells: tuple[CellKnobs, ...] = Field(min_length=1)
    tune: Tune
    final: Final
    objective: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(("target",), min_length=1)
    sampler: Annotated[Algorithm, BeforeValidator(_by_name)] = Algorithm(name="tpe")
    pruner: Annotated[Algorithm, BeforeValidator(_by_name)] = Algorithm(name="none")
    max_retries: int = Field(1, ge=0, le=100, description="of a run that fails by itself")
    max_lost: int = Field(10, ge=0, le=1000, description="workers that may die during a run before it counts as failed")
    keep_best: Literal["finals", "all", "none"] = "finals"
    workers: int | None = Field(None, ge=1, le=4096, description="None: one a slot (GPU or CPU core); 8 on Slurm")
    runs_per_gpu: int = Field(1, ge=1, le=64, description="runs that share a GPU; a profile's own comes first")
    storage: str = Field("journal", description="of the queue: journal, or a database's URL without its password")
    changed_code: Literal["warn", "refuse"] = Field("warn", description="workers whose code is not the launch's")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, algorithm, legal in (("sampler", self.sampler, SAMPLERS), ("pruner", self.pruner, PRUNERS)):
            if algorithm.name not in legal:
                raise unknown(kind, algorithm.name, legal)
        for name in self.objective:
            objective.check(name)
        _check_storage(self.storage)
        if len(set(self.final.seeds)) < len(self.final.seeds):
            raise ValueError(f"final.seeds: {list(self.final.seeds)} names a seed twice")
        if self.tune.seed in self.final.seeds:
            raise ValueError(f"tune.seed: {self.tune.seed} is also a final seed; tuning must not see those")
        if len(self.objective) > 1 and self.pruner.name != "none":
            raise ValueError("pruner: Optuna cannot prune trials of several objectives; use pruner: none")
        if self.sampler.name in STATIC_SAMPLERS and self.sampler.options:
            raise ValueError(f"sampler {self.sampler.name!r} takes no options, got {sorted(self.sampler.options)}")
        return self


def _check_storage(where: str) -> None:
    """Refuse what is neither a journal nor a database's URL, and a password in it, which belongs in no file."""
    if where == "journal":
        return
    scheme, separator, rest = where.partition("://")
    if not separator or scheme.partition("+")[0] not in DATABASES:
        legal = ("journal", *(f"{name}://..." for name in DATABASES))
        raise ValueError(f"storage: {masked(where)!r} is no place for a queue (legal: {', '.join(legal)})")
    if ":" in rest.rpartition("@")[0] or re.search(r"[?&](password|passwd|passfile)=", rest):
        raise ValueError(
            f"storage: {masked(where)!r} holds a password, which belongs in no file: write it as user@host and put the "
            "password in the environment as HARNESS_STORAGE_PASSWORD"
        )


@dataclass(frozen=True)
class Cell:
    """One study: a method stack at one grid point. `raw` lacks only searched values, seed and phase."""

    id: str
    raw: Mapping[str, Any]
    grid: Mapping[str, Any]
    set: Mapping[str, Any]
    search: Space

    def config(self, params: Mapping[str, Any], seed: int, phase: str) -> RunConfig:
        """The complete configuration of a run of this cell. Raises UserError where a value is illegal."""
        raw = deepcopy(dict(self.raw))
        for key, value in params.items():
            assign(raw, key, value)
        try:
            return complete({**raw, "seed": seed, "phase": phase})
        except UserError as error:
            raise UserError(f"cell {self.id}: {error}") from None


def assign(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of run settings: `train.learning_rate`, `target_bit`, or `<method>.<knob>`.

    Raises UserError when its first part is neither a section nor a method of the stack.
    """
    head, _, rest = key.partition(".")
    entries = {entry["name"]: entry for entry in raw.get("methods", ())}
    if rest and head in entries:
        entries[head][rest] = value
        return
    legal = [name for name in RunConfig.model_fields if name not in NOT_SET]
    if head not in legal:
        raise unknown("setting", head, [*legal, *entries])
    parts = key.split(".")
    for part in parts[:-1]:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(f"{key}: {part} is a value, not a section")
    raw[parts[-1]] = value


def expand(spec: SweepSpec, checked: bool = True) -> list[Cell]:
    """The cells of a sweep, in file order. Raises UserError for cells that are illegal or the same.

    Checking every cell's settings imports torch; a sweep that was launched has been checked.
    """
    cells: list[Cell] = []
    for knobs in spec.cells:
        grid = {**spec.grid, **knobs.grid}
        for point in itertools.product(*grid.values()):
            cells.append(_cell(spec, knobs, dict(zip(grid, point, strict=True))))
    if not cells:
        raise UserError("grid: an empty list of values leaves no run at all; name at least one value a key")
    for cell_id, times in Counter(cell.id for cell in cells).items():
        if times > 1:
            raise UserError(f"cells: two of them are {cell_id}; let grid or set tell them apart")
    for cell in cells if checked else ():
        _check_cell(spec, cell)
    return cells


def _cell(spec: SweepSpec, knobs: CellKnobs, point: dict[str, Any]) -> Cell:
    twice = [
        key
        for key in {*point, *knobs.set, *knobs.search}
        if (key in point) + (key in knobs.set) + (key in knobs.search) > 1
    ]
    if twice:
        raise UserError(f"cells: {', '.join(sorted(twice))} stands in two of grid, set and search; which one counts?")
    raw = deepcopy(spec.base)
    raw["methods"] = [dict(entry) for entry in knobs.methods]
    for key, value in itertools.chain(point.items(), knobs.set.items()):
        assign(raw, key, deepcopy(value))
    parts = ["+".join(entry["name"] for entry in knobs.methods)]
    parts += [f"{key}={_label(value)}" for key, value in itertools.chain(point.items(), knobs.set.items())]
    return Cell(",".join(parts), raw, point, dict(knobs.set), dict(knobs.search))


def _label(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(str(value[key]) for key in sorted(value, key=lambda key: (key != "name", key)))
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return str(value)


def _check_cell(spec: SweepSpec, cell: Cell) -> None:
    for params in corners(cell.search):
        config = cell.config(params, spec.tune.seed, "tune")
        figures = {name("val", bits): 0.0 for bits in config.evaluated_bits for name in (schema.accuracy, schema.loss)}
        for name_ in spec.objective:
            objective.value(name_, figures, list(config.deploy.bits), config.monitored_bits)
    if spec.tune.trials > 1 and not cell.search:
        raise UserError(
            f"cell {cell.id}: nothing to search, but every cell has {spec.tune.trials} trials; give it a dimension "
            "(search: {train.learning_rate: ...}), or set tune.trials to 0"
        )
    if spec.tune.trials == 0 and cell.search:
        raise UserError(f"cell {cell.id}: search needs tune.trials of at least 1")
    if "target_bit" in cell.search and "target" in spec.objective:
        raise UserError(
            f"cell {cell.id}: accuracy at the target bit cannot compare trials of different target_bit; "
            "set objective to mean, worst or a metric such as val/acc_w3"
        )


def read(path: Path, replaced: Iterable[str] = ()) -> SweepSpec:
    """The sweep in a file, with `key=value` overrides: dotted keys of the file or of its `base`, values in YAML."""
    raw = yaml_file.read(path)
    for override in replaced:
        overrides.apply(raw, override)
    try:
        spec = SweepSpec.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: " + explain(error, SweepSpec)) from None
    _check_names(path, spec)
    return spec


def _check_names(path: Path, spec: SweepSpec) -> None:
    """Refuse unknown sections and names in `base` while torch is still not imported."""
    for key in spec.base:
        if key not in RunConfig.model_fields or key in ("seed", "phase", "methods"):
            legal = [name for name in RunConfig.model_fields if name not in ("seed", "phase", "methods")]
            raise UserError(f"{path}: base: {unknown('setting', key, legal)}")
    for kind, key in (("model", "model"), ("data set", "data")):
        section = spec.base.get(key)
        if isinstance(section, dict) and "name" in section:
            registry.check(kind, str(section["name"]))


def plain(spec: SweepSpec) -> dict[str, Any]:
    """The spec as JSON values, for sweep.json and for comparison."""
    loaded: dict[str, Any] = json.loads(spec.model_dump_json())
    return loaded
