"""The loop's own rules: learning rates, patience, selection, clipping, batches, parameter groups, failures."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from training_details_common import Spy, config, same, without_codes

from harness.core.seeding import sub_seed
from harness.data.base import Split, order
from harness.methods.base import Context, Method, Step
from harness.oscillation.tracker import OscillationTracker
from harness.quantization.layers import weight_layers
from harness.records import schema
from harness.training import checkpoint
from harness.training.build import build
from harness.training.loop import step, train
from harness.training.optimizer import make_optimizer
from harness.training.run import RunContext, run
from harness.training.sections import TrainConfig
from harness.training.session import steps_an_epoch


def test_the_best_checkpoint_is_what_is_deployed_and_tested(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    wanted = config("ste", train__epochs=6, train__learning_rate=0.05)  # so fast that accuracy goes up and down
    lines: list[dict[str, Any]] = []
    record = run(wanted, tmp_path, RunContext(lines.append))
    values = [line[schema.MONITOR] for line in lines]
    assert values == [line["val/acc_w3"] for line in lines]
    best = record["best_epoch"]
    assert 1 <= best < 6, "else the last checkpoint would be the best one"
    assert values[best - 1] == max(values) == record["monitor"]
    session = build(wanted)
    session.model.load_state_dict(load_file(tmp_path / "best.safetensors"))
    rows = [row for split in ("val", "test") for row in session.evaluator.rows(session.model, "final", split)]  # type: ignore[arg-type]
    assert rows == without_codes(record["rows"])
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


def test_a_step_carries_its_batch_and_what_came_of_it() -> None:
    """Methods that teach a network by itself or by another one need all of this."""
    session = build(config("none", watch_bit=3, target_bit=None))
    seen: list[tuple[Tensor, Tensor]] = []

    class Looking(Spy):
        def penalty(self, step: Step) -> Tensor | float:
            assert step.inputs is not None
            assert step.targets is not None
            assert step.outputs is not None
            assert step.task_loss is not None
            assert step.forward is not None
            again = step.forward(step.inputs)
            assert torch.equal(again, step.outputs)
            assert again.requires_grad
            assert torch.equal(functional.cross_entropy(step.outputs, step.targets), step.task_loss)
            seen.append((step.inputs, step.targets))
            return 0.0

    session.methods.append(Looking())
    train(session, lambda metrics: None)
    assert [len(inputs) for inputs, _ in seen] == [40, 40, 40] * 2
    permutation = order(len(session.dataset.train), session.config.seed, 0, session.device)
    assert torch.equal(seen[1][1], session.dataset.train.labels[permutation[40:80]])


def test_further_passes_are_in_the_runs_precision() -> None:
    session = build(config("none", watch_bit=3, target_bit=None, train__precision="bf16"))
    kinds: list[torch.dtype] = []
    session.model.get_submodule("layer5").register_forward_hook(lambda module, args, out: kinds.append(out.dtype))

    class Again(Spy):
        def penalty(self, step: Step) -> Tensor | float:
            assert step.forward is not None
            assert step.inputs is not None
            assert step.forward(step.inputs).dtype == torch.float32
            return 0.0

    session.methods.append(Again())
    indices = torch.arange(40)
    session.model.train()
    step(session, indices)
    assert kinds == [torch.bfloat16] * 2


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
    optimizer = make_optimizer(TrainConfig(learning_rate=0.2, weight_decay=0.1), model, methods)
    assert {(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups} == {
        (0.1, 0.0, 1),
        (0.2, 0.0, 1),
        (0.2, 0.1, 2),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_a_method_asks_for_may_have_its_first_gradient_later(optimizer: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    settings = TrainConfig.model_validate({"optimizer": optimizer})
    usual = Options({"1.weight": {"lr": 1.0, "weight_decay": settings.weight_decay}})
    stepping = make_optimizer(settings, model, [usual])
    assert [len(group["params"]) for group in stepping.param_groups] == [3, 1]
    for late in (True, True, False, False):
        model(torch.ones(1, 2)).square().sum().backward()
        if late:
            model[1].weight.grad = None
        before = model[1].weight.detach().clone()
        stepping.step()
        stepping.zero_grad()
        assert torch.equal(model[1].weight, before) == late


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compile", ["off", "auto"])
def test_a_step_never_waits_for_the_device(compile: str) -> None:
    wanted = config(
        [{"name": "oscillation"}],
        runtime__device="cuda",
        runtime__compile=compile,
        data__augment={"crop_padding": 1, "flip": True},
    )
    session = build(wanted)
    batches = order(len(session.dataset.train), 0, 0, "cuda").split(40)
    step(session, batches[0])  # kernels are loaded, and memory is asked for, the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(session, batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_gradient_of_another_layout_reaches_the_right_weights(tmp_path: Path) -> None:
    """torch's fused optimizers on CPUs mix weights up when layouts differ; the loop must not let them."""

    class Relayout(Spy):
        def after_backward(self, step: Step) -> Tensor | float:
            for parameter in step.model.parameters():
                if parameter.dim() == 4 and parameter.grad is not None:
                    parameter.grad = parameter.grad.contiguous()
            return 0.0

    wanted = config("none", model={"name": "resnet18", "width": 4})
    session, plain = build(wanted), build(wanted)
    session.methods.append(Relayout())
    train(session, lambda metrics: None)
    train(plain, lambda metrics: None)
    assert same(session.model.state_dict(), plain.model.state_dict())

    checkpoint.save(tmp_path / "checkpoint.pt", plain)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for averages in state["optimizer"]["state"].values():
        averages.update({name: value.contiguous() for name, value in averages.items()})
    torch.save(state, tmp_path / "checkpoint.pt")  # as if written before weights were channels-last
    restored = build(wanted)
    assert checkpoint.restore(tmp_path / "checkpoint.pt", restored)
    for parameter, averages in restored.optimizer.state.items():
        assert averages["exp_avg"].stride() == parameter.stride()
