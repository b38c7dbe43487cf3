"""The sections `train`, `deploy`, `monitor` and `runtime` of a run's configuration. Free of torch."""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from harness.core.bits import FLOAT, PlainPoint
from harness.core.config_base import IDENTITY_IF_CHANGED, NOT_IDENTITY, DeployedPoint, StrictConfig, by_name
from harness.core.layer_points import AnyPoint, point_of
from harness.training.deploy_entries import (
    DeployEntry,
    Entry,
    deployable,
    name_in_rows,
    refuse_equal_names,
    settings_of,
)


class TrainConfig(StrictConfig):
    """The training loop. Epochs count from 1; learning rates are those of the chosen optimizer."""

    epochs: int = Field(40, ge=0, le=100_000, description="at most; patience may end training earlier")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="samples per step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="of torch.optim; sgd has momentum")
    learning_rate: float = Field(1e-3, gt=0, le=1e3, description="after warm-up, before any decay")
    weight_decay: float = Field(0.0, ge=0, le=10, description="as the optimizer defines it; 0: none")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd only; adam and adamw use the default betas")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate; cosine: decays to 0 over all epochs"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up, part of epochs")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without improvement; null: never")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient; null: no clipping")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy loss; 0: none")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of a step; auto: bf16 where the device has it and, on CPUs, most products are in large layers",
    )


class DeployConfig(StrictConfig):
    """How a trained network is rounded. `scale` has no default: it is a scientific choice."""

    bits: tuple[DeployedPoint, ...] = Field(
        (2, 3, 4, 8),
        min_length=1,
        description="points to evaluate at: 2 to 8, w4a8 with activations, w4kv4 with keys and values, or layers with "
        "a point each: {'*': w4, head: w8}, {name: head8, layers: {...}}; target_bit and float are added",
        json_schema_extra=NOT_IDENTITY,
    )
    scale: Literal["keep_step", "keep_range", "recalibrate"] = Field(
        description="what a learned step becomes at another bit-width; recalibrate: a new step from max|w|"
    )
    methods: tuple[DeployEntry, ...] = Field(
        ("rtn",),
        min_length=1,
        description="rtn (round-to-nearest), or methods with a deployment of their own, by name or {name: ..., as: "
        "name in rows, setting: ...}; rows for each",
        json_schema_extra=NOT_IDENTITY,
    )
    figures: tuple[str, ...] = Field(
        (),
        description="further figures of the task beside its metric, in rows and epochs: f1, bacc (classification)",
        json_schema_extra=NOT_IDENTITY,
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of evaluation passes", json_schema_extra=IDENTITY_IF_CHANGED
    )

    @field_validator("bits")
    @classmethod
    def _each_once(cls, bits: tuple[PlainPoint | dict[str, Any], ...]) -> tuple[PlainPoint | dict[str, Any], ...]:
        points = [point_of(each) for each in bits]
        times = Counter(point.key for point in points)
        if twice := dict.fromkeys(str(point) for point in points if times[point.key] > 1):
            raise ValueError(f"names {', '.join(twice)} more than once")
        if all(point.is_float for point in points):
            raise ValueError("float is evaluated anyway; name a point to round to")
        return tuple(each for each in bits if each != FLOAT)

    @property
    def points(self) -> tuple[AnyPoint, ...]:
        """`bits` as points, in the order of the file."""
        return tuple(map(point_of, self.bits))

    @field_validator("methods")
    @classmethod
    def _different_names(cls, methods: tuple[Entry, ...]) -> tuple[Entry, ...]:
        refuse_equal_names(methods)
        return methods

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """`methods` by what rows have as their deploy method: the name and the settings that are given."""
        return {name_in_rows(entry): settings_of(entry) for entry in self.methods}


class MonitorConfig(StrictConfig):
    """What chooses the best epoch and ends training after `patience`, and what the objective is taken from."""

    deploy: Annotated[dict[str, Any], BeforeValidator(by_name), AfterValidator(deployable)] = Field(
        {"name": "rtn"},
        description="the metric is measured after: rtn (round-to-nearest), or a method with a deployment of its own, "
        "by name or {name: ..., setting: ...}",
    )

    @property
    def name(self) -> str:
        """Of the deploy method."""
        return str(self.deploy["name"])


class RuntimeConfig(StrictConfig):
    """Where and how a run is carried out; no part of its identity."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1")
    threads: int | None = Field(None, ge=1, description="CPU threads; null: the worker's share of the cores")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile for the network; auto: where runs are long; off: training steps by plain operations",
    )
    deterministic: bool = Field(False, description="refuse CUDA kernels that do not repeat bit for bit")
    eval_batch_size: int = Field(1024, ge=1, description="samples per evaluation pass")
    checkpoint_every_s: float = Field(10.0, ge=0, description="seconds between checkpoints")
    wandb: Literal["auto", "online", "offline", "off"] = Field(
        "auto", description="the copy on W&B; auto: offline without a key"
    )
    wandb_project: str = Field("oscillation-harness", description="project on W&B")
    wandb_artifact: bool = Field(False, description="upload best.safetensors to W&B, where it is kept")
