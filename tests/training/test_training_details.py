"""The loop's own rules: learning rates, patience, selection, clipping, batches, parameter groups, failures."""

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import checkpoint, schema
from harness.build import build, choose_device, choose_precision, make_optimizer
from harness.config import RunConfig, RuntimeKnobs, TrainKnobs, complete
from harness.data.base import Split, order
from harness.errors import UserError
from harness.layers import weight_layers
from harness.methods.base import Context, Method, Step
from harness.oscillation import OscillationTracker
from harness.record import RunDirectory, read_json
from harness.run import run
from harness.seeding import sub_seed
from harness.train import (
    Progress,
    Session,
    Stopped,
    TrainingError,
    first_eligible_epoch,
    learning_rate_factor,
    out_of_patience,
    steps_an_epoch,
    train,
)


def config(method: str | list[dict[str, Any]] = "ste", **changes: Any) -> RunConfig:
    """Two epochs of three steps on digits; `train__epochs=1` and the like change a key."""
    raw: dict[str, Any] = {
        "methods": method,
        "target_bit": 3,
        "model": {"name": "mlp5", "width": 16},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 2, "batch_size": 40},
        "deploy": {"bits": [2, 8], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "checkpoint_every_s": 0.0},
    }
    for key, value in changes.items():
        section, _, last = key.rpartition("__")
        (raw[section] if section else raw)[last] = value
    return complete(raw)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left) and left.keys() == right.keys()


class Spy(Method):
    """Notes each hook, and what it sees there."""

    def __init__(self, selection_start: float = 0.0) -> None:
        super().__init__(None, Context())
        self.calls: list[str] = []
        self.steps: list[Step] = []
        self.norms: list[float] = []
        self.selection_start = selection_start  # type: ignore[misc]

    def on_step_start(self, step: Step) -> None:
        self.calls.append("start")
        self.steps.append(step)
        assert step.task_loss is None

    def penalty(self, step: Step) -> Tensor | float:
        assert step.task_loss is not None
        assert step.task_loss.requires_grad
        self.calls.append("penalty")
        return 0.0

    def after_backward(self, step: Step) -> Tensor | float:
        self.calls.append("backward")
        return 0.0

    def after_step(self, step: Step) -> None:
        self.calls.append("step")
        gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))


# Learning rate


def test_constant_learning_rate() -> None:
    assert [learning_rate_factor(step, 10, 5, TrainKnobs()) for step in range(10)] == [1.0] * 10


def test_warm_up_then_cosine() -> None:
    knobs = TrainKnobs(schedule="cosine", warmup_epochs=0.5)
    factors = [learning_rate_factor(step, 20, 8, knobs) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(16)], rel=1e-12)
    assert 0 < factors[-1] < 0.02
    assert factors[12] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_longer_than_training(schedule: Any) -> None:
    knobs = TrainKnobs(schedule=schedule, warmup_epochs=100)
    assert [learning_rate_factor(step, 4, 2, knobs) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_loop_uses_the_factors_also_after_a_checkpoint(tmp_path: Path) -> None:
    seen: list[float] = []

    class Rates(Spy):
        def after_step(self, step: Step) -> None:
            seen.append(session.optimizer.param_groups[0]["lr"])

    wanted = config("none", train__schedule="cosine", train__warmup_epochs=1)
    session = build(wanted)
    session.methods.append(Rates())
    train(session, lambda metrics: None)
    factors = [learning_rate_factor(step, 6, 3, wanted.train) for step in range(6)]
    assert seen == [1e-3 * factor for factor in factors]
    seen.clear()
    for allowed in (2, 3, 9):
        left = iter([False] * allowed + [True] * 9)
        session = build(wanted)
        checkpoint.restore(tmp_path / "checkpoint.pt", session)
        session.methods.append(Rates())
        try:
            train(session, lambda metrics: None, lambda left=left: next(left))  # type: ignore[misc]
        except Stopped:
            session.methods.pop()
            checkpoint.save(tmp_path / "checkpoint.pt", session)
    assert seen == [1e-3 * factor for factor in factors]


# Patience and selection


def staged(start: float) -> list[Method]:
    return [Spy(), Spy(start)]


@pytest.mark.parametrize(
    ("start", "epochs", "first"),
    [(0.0, 10, 1), (0.5, 10, 6), (0.25, 10, 3), (0.99, 10, 10), (1.0, 10, 10), (0.5, 1, 1)],
)
def test_first_eligible_epoch(start: float, epochs: int, first: int) -> None:
    assert first_eligible_epoch(TrainKnobs(epochs=epochs), staged(start)) == first


def test_patience() -> None:
    knobs = TrainKnobs(epochs=100, patience=3)
    assert [out_of_patience(Progress(epoch=e, best_epoch=2), knobs, []) for e in range(2, 7)] == [False] * 3 + [
        True
    ] * 2
    assert not out_of_patience(Progress(epoch=99), TrainKnobs(epochs=100), [])
    # eligible from epoch 51 on: epochs before do not count
    never = [out_of_patience(Progress(epoch=e), knobs, staged(0.5)) for e in (10, 50, 52, 53)]
    assert never == [False, False, False, True]


def with_values(session: Session, values: list[float]) -> None:
    """Let the monitored value of each epoch be the given one."""
    left = iter(values)

    class Fixed:
        def rows(self, model: nn.Module, phase: str, split: str) -> list[dict[str, Any]]:
            value = next(left)
            bits = session.config.evaluated_bits
            return [dict(zip(schema.ROW, (phase, split, "rtn", "s", b, value, 1.0, 1), strict=True)) for b in bits]

    session.evaluator = Fixed()  # type: ignore[assignment]


def test_training_stops_and_the_best_epoch_is_kept() -> None:
    session = build(config("none", train__epochs=50, train__patience=2))
    with_values(session, [0.1, 0.5, 0.5, 0.4, *[0.9] * 50])
    after: list[dict[str, Tensor]] = []
    train(session, lambda metrics: after.append(weights(session.model)))
    progress = session.progress
    assert (progress.epoch, progress.best_epoch, progress.best_value) == (4, 2, 0.5), "the earlier of two equals"
    assert same(progress.best_state, after[1])
    assert not same(progress.best_state, after[3])


def test_early_epochs_of_a_staged_method_cannot_be_best() -> None:
    session = build(config("none", train__epochs=4, train__patience=1))
    session.methods.append(Spy(0.5))
    with_values(session, [0.9, 0.9, 0.1, 0.3])
    train(session, lambda metrics: None)
    assert (session.progress.epoch, session.progress.best_epoch, session.progress.best_value) == (4, 4, 0.3)


def test_the_best_checkpoint_is_what_is_deployed_and_tested(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    wanted = config("ste", train__epochs=6, train__learning_rate=0.05)  # so fast that accuracy goes up and down
    lines: list[dict[str, Any]] = []
    record = run(wanted, tmp_path, lines.append)
    values = [line[schema.MONITOR] for line in lines]
    assert values == [line["val/acc_w3"] for line in lines]
    best = record["best_epoch"]
    assert 1 <= best < 6, "else the last checkpoint would be the best one"
    assert values[best - 1] == max(values) == record["monitor"]
    session = build(wanted)
    session.model.load_state_dict(load_file(tmp_path / "best.safetensors"))
    rows = [row for split in ("val", "test") for row in session.evaluator.rows(session.model, "final", split)]  # type: ignore[arg-type]
    assert rows == record["rows"]
    value = next(row["accuracy"] for row in rows if row["bits"] == 3 and row["split"] == "val")
    assert value == record["monitor"]


def test_a_float_run_is_selected_by_float_accuracy() -> None:
    wanted = config("none", target_bit=None, watch_bit=3)
    lines: list[dict[str, Any]] = []
    train(build(wanted), lines.append)
    assert all(line[schema.MONITOR] == line["val/acc_float"] for line in lines)
    assert "val/acc_w3" not in lines[0], "2, 8 and float are evaluated"


# Steps


def test_hooks_are_called_in_order() -> None:
    session, spy = build(config("none")), Spy()
    session.methods.append(spy)
    train(session, lambda metrics: None)
    assert spy.calls == ["start", "penalty", "backward", "step"] * 6
    assert [step.index for step in spy.steps] == list(range(6))
    assert {step.total for step in spy.steps} == {6}
    assert all(step.model is session.model for step in spy.steps)


def test_the_tracker_sees_every_step_once_the_weights_are_final() -> None:
    class Restores(Spy):
        """Puts weights on a coarse grid after the step; its own tracker is told right then."""

        def after_step(self, step: Step) -> None:
            with torch.no_grad():
                for layer in weight_layers(session.model).values():
                    layer.weight.copy_((layer.weight * 50).round() / 50)
            own.update()

    session = build(config("none", train__learning_rate=0.02))
    own = OscillationTracker(session.model, 3)
    session.methods.append(Restores())
    lines: list[dict[str, Any]] = []
    train(session, lines.append)
    assert lines[0][schema.FLIPS_PER_WEIGHT] > 0
    for name, layer in own.state_dict().items():
        for key in ("code", "direction", "frequency"):
            assert torch.equal(session.tracker.state_dict()[name][key], layer[key])


def test_lsqs_steps_stay_positive() -> None:
    session = build(config([{"name": "lsq", "step_learning_rate": 100.0}], train__learning_rate=0.1))
    train(session, lambda metrics: None)
    steps = [tensor for name, tensor in session.model.state_dict().items() if name.endswith("learned_step")]
    assert len(steps) == 5
    assert min(float(step) for step in steps) == pytest.approx(1e-5), "else the floor was never reached"


def test_gradients_are_clipped_with_what_methods_added() -> None:
    class Pushy(Spy):
        def after_backward(self, step: Step) -> Tensor | float:
            for parameter in step.model.parameters():
                assert parameter.grad is not None
                parameter.grad.add_(100.0)
            return torch.tensor(5.0)

    session, spy = build(config("none", train__clip_norm=0.5)), Pushy()
    session.methods.append(spy)
    lines: list[dict[str, Any]] = []
    train(session, lines.append)
    assert spy.norms == pytest.approx([0.5] * 6, rel=1e-4)  # torch adds 1e-6 to the norm it divides by
    assert lines[0][schema.TRAIN_PENALTY] == 5.0
    free, spy = build(config("none")), Pushy()
    free.methods.append(spy)
    train(free, lambda metrics: None)
    assert min(spy.norms) > 100


@pytest.mark.parametrize(("count", "batch", "steps"), [(121, 40, 3), (122, 40, 4), (120, 40, 3), (1, 40, 1), (3, 1, 3)])
def test_a_last_batch_of_one_is_left_out(count: int, batch: int, steps: int) -> None:
    wanted = config("none", train__batch_size=batch, train__epochs=1)
    session = build(wanted)
    split = session.dataset.train
    some = Split(split.images[:1].expand(count, -1, -1, -1), split.labels[:1].expand(count))
    session.dataset = replace(session.dataset, train=some)
    assert steps_an_epoch(wanted, session.dataset) == steps
    spy = Spy()
    session.methods.append(spy)
    train(session, lambda metrics: None)
    assert len(spy.steps) == steps


def test_label_smoothing_and_the_plain_loop_by_hand() -> None:
    """The loop is what a reader would write: same order, loss and Adam, so the same weights to the last bit."""
    wanted = config("none", train__label_smoothing=0.2, train__weight_decay=0.01, train__epochs=1)
    session = build(wanted)
    model, data = copy.deepcopy(session.model), session.dataset
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=0.01, fused=True)
    losses = []
    for indices in order(len(data.train), wanted.seed, 0, "cpu").split(40):
        if len(indices) > 1:
            inputs, labels = data.train_batch(indices)
            loss = functional.cross_entropy(model(inputs), labels, label_smoothing=0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    lines: list[dict[str, Any]] = []
    train(session, lines.append)
    assert same(session.model.state_dict(), model.state_dict())
    assert lines[0][schema.TRAIN_LOSS] == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_order_differs_between_epochs_and_seeds_only() -> None:
    assert torch.equal(order(50, 1, 2, "cpu"), order(50, 1, 2, "cpu"))
    assert not torch.equal(order(50, 1, 2, "cpu"), order(50, 1, 3, "cpu"))
    assert not torch.equal(order(50, 1, 2, "cpu"), order(50, 2, 2, "cpu"))
    assert sorted(order(50, 1, 2, "cpu").tolist()) == list(range(50))
    assert sub_seed(1, "order", 2) != sub_seed(1, "augment", 2)


# Parameter groups


class Options(Method):
    def __init__(self, options: dict[str, dict[str, float]]) -> None:
        super().__init__(None, Context())
        self.options = options

    def param_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, float]:
        return self.options.get(name, {})


def test_a_parameter_group_for_each_set_of_options() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    methods = [
        Options({"0.weight": {"lr": 0.5}, "1.weight": {"weight_decay": 0.0}}),
        Options({"0.weight": {"weight_decay": 0.0}}),
    ]
    optimizer = make_optimizer(TrainKnobs(learning_rate=0.2, weight_decay=0.1), model, methods)
    assert {(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups} == {
        (0.1, 0.0, 1),
        (0.2, 0.0, 1),
        (0.2, 0.1, 2),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers(name: Any, kind: type) -> None:
    optimizer = make_optimizer(TrainKnobs(optimizer=name, momentum=0.7), nn.Linear(2, 2), [])
    assert type(optimizer) is kind
    assert optimizer.param_groups[0].get("momentum", 0.7) == 0.7


def test_lsqs_steps_learn_at_their_own_rate_and_do_not_decay() -> None:
    session = build(config([{"name": "lsq", "step_learning_rate": 0.01}], train__weight_decay=0.1))
    groups = {group["lr"]: group for group in session.optimizer.param_groups}
    steps = groups[1e-3 * 0.01]
    assert steps["weight_decay"] == 0
    assert len(steps["params"]) == 5
    assert all(parameter.shape == () for parameter in steps["params"])
    assert groups[1e-3]["weight_decay"] == 0.1


def test_device_and_precision() -> None:
    assert choose_device(RuntimeKnobs(device="cpu")) == torch.device("cpu")
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"
    assert choose_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"runtime\.device: 'cuda'"):
            choose_device(RuntimeKnobs(device="cuda"))


def test_bf16_trains_and_is_evaluated_in_fp32() -> None:
    session = build(config("lsq", train__precision="bf16"))
    plain = build(config("lsq"))
    assert session.precision == "bf16"
    lines: list[dict[str, Any]] = []
    train(session, lines.append)
    train(plain, lambda metrics: None)
    assert all(math.isfinite(line[schema.TRAIN_LOSS]) for line in lines)
    assert all(parameter.dtype == torch.float32 for parameter in session.model.parameters())
    assert not same(session.model.state_dict(), plain.model.state_dict())


# Whole runs


def test_rows_of_a_record(tmp_path: Path) -> None:
    record = run(config("ste"), tmp_path)
    assert record == read_json(tmp_path / "record.json")
    expected = [(split, bits) for split in ("val", "test") for bits in (2, 3, 8, "float")]
    assert [(row["split"], row["bits"]) for row in record["rows"]] == expected
    for row in record["rows"]:
        assert tuple(row) == schema.ROW == ("phase", "split", "deploy", "scale", "bits", "accuracy", "loss", "n")
        assert (row["phase"], row["deploy"], row["scale"]) == ("final", "rtn", "recalibrate")
        assert 0 <= row["accuracy"] <= 1
        assert row["loss"] > 0
        assert row["n"] == (397 if row["split"] == "test" else 200)
        assert row["accuracy"] * row["n"] == pytest.approx(round(row["accuracy"] * row["n"]), abs=1e-9)
    assert {"git", "numerics_version", "packages", "device", "wall_time_s", "data_digest"} <= set(record["provenance"])
    assert record["epochs"] == 2
    assert not (tmp_path / "checkpoint.pt").exists()
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["attempt"], status["failures"]) == ("done", 1, 0)
    assert [line["epoch"] for line in RunDirectory(tmp_path).read_metrics()] == [1, 2]
    assert complete(record["config"]).run_id() == record["run_id"]


def test_a_tuning_run_never_reads_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data.base import Dataset

    read: list[int] = []
    normalized = Dataset.normalized

    def watched(self: Dataset, images: Tensor) -> Tensor:
        read.append(images.untyped_storage().data_ptr())
        assert images.untyped_storage().data_ptr() != self.test.images.untyped_storage().data_ptr()
        return normalized(self, images)

    monkeypatch.setattr(Dataset, "normalized", watched)
    record = run(config("ste", phase="tune"), tmp_path)
    assert read
    assert {(row["phase"], row["split"]) for row in record["rows"]} == {("tune", "val")}
    assert not any(key.startswith("test/") for line in RunDirectory(tmp_path).read_metrics() for key in line)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = run(config("ste"), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(config("ste"), tmp_path, epoch_done=lambda metrics: pytest.fail("trained again")) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    run(config("ste"), tmp_path)
    record = (tmp_path / "record.json").read_bytes()
    with pytest.raises(UserError, match="directory of its own"):
        run(config("ste", seed=1), tmp_path)
    assert (tmp_path / "record.json").read_bytes() == record
    run(config("ste", runtime__eval_batch_size=7), tmp_path)  # the runtime is no part of a run's identity


def test_zero_epochs_evaluate_the_network_as_it_came(tmp_path: Path) -> None:
    wanted = config("ste", train__epochs=0)
    record = run(wanted, tmp_path)
    session = build(wanted)
    assert (record["epochs"], record["best_epoch"], len(record["rows"])) == (0, 0, 8)
    assert record["rows"][4:] == session.evaluator.rows(session.model, "final", "test")


def test_a_loss_that_is_no_number_fails_the_run(tmp_path: Path) -> None:
    wanted = config("none", train__optimizer="sgd", train__learning_rate=1000.0, train__epochs=30)
    with pytest.raises(TrainingError, match=r"loss .*became nan in epoch"):
        run(wanted, tmp_path)
    status = read_json(tmp_path / "status.json")
    assert status["state"] == "failed"
    assert status["failures"] == 1
    assert re.match(r"TrainingError: the \w+ loss .*became nan in epoch \d", status["reason"])
    assert "Traceback (most recent call last)" in status["traceback"]
    assert "in train" in status["traceback"]
    assert not (tmp_path / "record.json").exists()


def test_weights_that_break_at_the_last_step_name_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last loss is finite, the weights after it are not: no record, and a reason that can be understood."""

    def breaks(self: Method, step: Step) -> None:
        for parameter in step.model.parameters():
            parameter.data.fill_(math.nan)

    monkeypatch.setattr("harness.methods.none.FloatTraining.after_step", breaks)
    with pytest.raises((TrainingError, ValueError)) as error:
        run(config("none", train__epochs=1, train__batch_size=1000), tmp_path)
    assert not (tmp_path / "record.json").exists()
    assert isinstance(error.value, TrainingError), repr(error.value)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_checkpoint_starts_over(tmp_path: Path, keep: int, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = config("ste")
    whole = run(wanted, tmp_path / "whole")
    left = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        run(wanted, tmp_path / "torn", asked_to_stop=lambda: next(left))
    path = tmp_path / "torn/checkpoint.pt"
    content = path.read_bytes()
    assert len(content) > 5000
    path.write_bytes(content[:keep])
    assert run(wanted, tmp_path / "torn")["rows"] == whole["rows"]
    assert "starting over" in capsys.readouterr().out
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "torn")]
    assert lines[0] == lines[1]


def test_checkpoints_load_as_plain_data(tmp_path: Path) -> None:
    left = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        run(config("lsq"), tmp_path, asked_to_stop=lambda: next(left))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 1)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "cancelled"
    assert not list(tmp_path.glob(".*")), "nothing is left of what was written aside"
