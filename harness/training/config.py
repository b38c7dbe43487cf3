"""RunConfig: everything that decides what a run computes, complete, frozen and hashed.

Checking goes in three steps. `parse` needs no torch: names of methods, models and data sets are file names.
`complete_but_methods` imports the named files of data set and model to check their settings and to fill in their
defaults; `complete` those of the methods, and torch with them.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from harness.core import registry
from harness.core.bits import FLOAT, BitWidths
from harness.core.config_base import (
    IDENTITY_IF_CHANGED,
    NOT_IDENTITY,
    ActivationsConfig,
    KeyValueConfig,
    Point,
    QuantizerConfig,
    StrictConfig,
    WeightBits,
    by_name,
    listed,
)
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint
from harness.core.validation import explain
from harness.tasks.base import Task, task_of
from harness.training.components import component, config_class
from harness.training.deploy_entries import name_in_rows, with_all_settings
from harness.training.point_checks import check_points
from harness.training.sections import DeployConfig, MonitorConfig, RuntimeConfig, TrainConfig


def _named(kind: str) -> AfterValidator:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        if "name" not in value:
            raise ValueError(f"names no {kind} (name: {' | '.join(registry.names(kind))})")
        return {**value, "name": registry.check(kind, str(value["name"]))}

    return AfterValidator(check)


def _task(name: str) -> str:
    return registry.check("task", name)


TaskName = Annotated[str, AfterValidator(_task)]
MethodEntry = Annotated[dict[str, Any], BeforeValidator(by_name), _named("method")]
MethodStack = Annotated[tuple[MethodEntry, ...], BeforeValidator(listed), Field(min_length=1)]


class RunConfig(StrictConfig):
    """One run, complete. `seed` is the root of every random draw (harness/core/seeding.py)."""

    phase: Literal["tune", "final"] = Field("final", description="tune: validation split only; final: test split too")
    seed: int = Field(0, ge=0, lt=2**32, description="of every random draw")
    target_bit: Point | None = Field(
        None, description="the point to train for: 2 to 8, or w4a4 with activations; null: float training"
    )
    watch_bit: WeightBits | None = Field(
        None, description="where oscillations are counted, 2 to 8; null: at target_bit"
    )
    also_watch: tuple[WeightBits, ...] = Field(
        (), description="further bit-widths at which a float run is watched", json_schema_extra=IDENTITY_IF_CHANGED
    )
    methods: MethodStack = Field(description="one method or an ordered stack, by name or {name: ..., setting: ...}")
    model: Annotated[dict[str, Any], _named("model")] = Field(
        description="name of a file of harness/models; its settings"
    )
    data: Annotated[dict[str, Any], _named("data set")] = Field(
        description="name of a file of harness/data; its settings"
    )
    tasks: Annotated[tuple[TaskName, ...], BeforeValidator(listed)] = Field(
        (),
        description="further tasks that data sets and models may name: files of your own",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    train: TrainConfig = Field(TrainConfig(), description="the training loop")
    pretrain: TrainConfig | None = Field(
        None,
        description="for fine-tuning: train in float with these settings first; null: no",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    quantizer: QuantizerConfig = Field(QuantizerConfig(), description="the default quantizer")
    activations: ActivationsConfig = Field(
        ActivationsConfig(),
        description="how activations are rounded at points such as w4a4",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    kv: KeyValueConfig = Field(
        KeyValueConfig(),
        description="how keys and values are rounded at points such as w4kv4",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="layers left in float, or weights beside them: names or globs such as blocks.*",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    deploy: DeployConfig = Field(description="how the trained network is rounded and evaluated")
    monitor: MonitorConfig = Field(
        MonitorConfig(),
        description="what the best epoch, patience and the objective go by",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    runtime: RuntimeConfig = Field(
        RuntimeConfig(), description="device, threads, W&B; no part of a run's identity", json_schema_extra=NOT_IDENTITY
    )

    @model_validator(mode="after")
    def _watch_bit_is_known(self) -> Self:
        if self.target_bit == FLOAT:
            raise ValueError("target_bit: 'float': leave it out (or null) for float training")
        target = self.target
        if self.watch_bit is None:
            if target is None:
                raise ValueError(
                    "target_bit is missing: the bit-width that methods train for (2 to 8, w4a4 and such); float "
                    "training has none, and names the one at which oscillations are counted: watch_bit: 2 to 8"
                )
            object.__setattr__(self, "watch_bit", target.weights)
        if self.also_watch and target is not None:
            raise ValueError("also_watch is for float runs (no target_bit); any other is watched at its target bit")
        if len({self.watch_bit, *self.also_watch}) <= len(self.also_watch):
            raise ValueError(f"also_watch: {list(self.also_watch)} names a bit-width twice, or watch_bit's")
        return self

    @property
    def task(self) -> Task:
        """What the network is trained for, which its data set decides, with the further figures of `deploy`."""
        return task_of(self.data, self.tasks).measuring(self.deploy.figures)

    @property
    def target(self) -> BitWidths | None:
        """The point to train for; None for float training."""
        return None if self.target_bit is None else BitWidths.of(self.target_bit)

    @property
    def evaluated_points(self) -> tuple[AnyPoint, ...]:
        """The deployment points with the target among them, ascending, then float."""
        target = self.target
        return (*sorted({*self.deploy.points, *([target] if target else [])}), BitWidths())

    @property
    def monitored_point(self) -> BitWidths:
        """The point whose validation score, after `monitor.deploy`, chooses the best epoch."""
        return self.target or BitWidths()

    @property
    def deploys(self) -> dict[str, dict[str, Any]]:
        """Name and settings of each deploy method of the record's rows: rtn, `deploy.methods`, the monitored one."""
        return {"rtn": {"name": "rtn"}, **self.deploy.entries, self.monitor.name: self.monitor.deploy}

    @property
    def epoch_points(self) -> tuple[AnyPoint, ...]:
        """Those of `evaluated_points` at which each epoch is evaluated: weights only, and the monitored one."""
        return tuple(each for each in self.evaluated_points if each.weights_only or each == self.monitored_point)

    def run_id(self) -> str:
        """The 12 hex digits that name this run everywhere: a hash of what decides its numbers.

        Needs a complete configuration (`complete`). Leaves out the runtime, paths, deployment bits and methods.
        """
        plain = self.identity()
        plain["methods"] = [component("method", entry).identity() for entry in self.methods]
        if "monitor" in plain:
            plain["monitor"] = {"deploy": component("method", self.monitor.deploy).identity()}
        model = component("model", self.model)
        plain["model"] = model.identity()
        plain["data"] = component("data set", self.data).identity()
        if model.checkpoint is not None:  # a path says nothing; the weights do
            plain["model"]["init"] = f"sha256:{_digest(model.checkpoint)}"
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def complete(raw: Mapping[str, Any]) -> RunConfig:
    """A RunConfig with every setting of its components checked and every default filled in.

    Raises UserError naming field, value and what is legal. Imports torch, once all that needs none is checked.
    """
    config = complete_but_methods(raw)
    from harness.training.method_checks import check_methods

    def all_settings(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(component("method", given, where).model_dump(mode="json"))

    entries = tuple(all_settings("", entry) for entry in config.methods)
    deploys = with_all_settings(config.deploy.methods, partial(all_settings, "deploy.methods: "))
    deploy, monitor = config.deploy.model_copy(update={"methods": deploys}), config.monitor
    if monitor.name != "rtn":
        monitor = MonitorConfig(deploy=all_settings("monitor.deploy: ", monitor.deploy))
    check_methods(config, [entry["name"] for entry in entries])
    return config.model_copy(update={"methods": entries, "deploy": deploy, "monitor": monitor})


def complete_but_methods(raw: Mapping[str, Any]) -> RunConfig:
    """The same with the settings of methods as they are. Imports torch for timm's models only."""
    config = parse(raw)
    data, model = component("data set", config.data), component("model", config.model)
    _check_task(config, model.tasks)
    check_points(config, model)
    if model.checkpoint is not None and not model.checkpoint.is_file():
        raise UserError(f"model.init: there is no file {str(model.checkpoint)!r}")
    return config.model_copy(update={"data": data.model_dump(mode="json"), "model": model.model_dump(mode="json")})


def _check_task(config: RunConfig, served: tuple[str, ...]) -> None:
    """Refuse a model that does not serve the data's task, and settings that mean nothing there."""
    task, model, data = config.task, *(registry.shown(each["name"]) for each in (config.model, config.data))
    if task.name not in served:
        able = [each for each in registry.names("model") if task.name in config_class("model", each).tasks]  # type: ignore[attr-defined]
        raise UserError(
            f"model {model!r} serves {', '.join(served)}, and the task of data set {data!r} is "
            f"{task.name} (models for it: {', '.join(able) or 'none'})"
        )
    if task.baseline and task.baseline in map(name_in_rows, config.deploy.methods):
        raise UserError(
            f"deploy.methods: as: {task.baseline!r} is what the task {task.name} calls its baseline in rows"
        )
    for name, section in (("train", config.train), ("pretrain", config.pretrain)):
        if section and section.label_smoothing and not task.smooths_labels:
            raise UserError(
                f"{name}.label_smoothing: {section.label_smoothing} has no meaning in the task {task.name} (legal: 0)"
            )


def parse(raw: Mapping[str, Any]) -> RunConfig:
    """The same with all components' settings as they are: only their names are checked. Never imports torch."""
    try:
        config = RunConfig.model_validate(dict(raw))
    except ValidationError as error:
        raise UserError(explain(error, RunConfig)) from None
    names = [registry.shown(entry["name"]) for entry in config.methods]
    if len(set(names)) < len(names):
        raise UserError(f"methods: {names} names a method twice")
    return config


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"model.init: cannot read {str(path)!r}: {error.strerror}") from None
