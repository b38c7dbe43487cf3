"""Any-precision networks: a step by hand, norms for each bit-width, and what is read between steps."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from any_precision_common import (
    VIT,
    batch,
    by_hand,
    network,
    of_width,
    one_step,
    prepared,
    session_of,
    set_norms,
    soft,
    switched,
    unlike,
)
from torch import Tensor, nn
from torch.nn import functional
from toy_model import NO_DATA

from harness.core.bits import Bits, BitWidths
from harness.core.errors import UserError
from harness.methods.base import Step
from harness.quantization.layers import QuantLayer, attach, weight_layers
from harness.training import checkpoint
from harness.training.loop import step, train


@pytest.mark.parametrize(
    ("target", "settings", "widths"),
    [
        (3, {}, ("float", 8, 4, 3, 2)),
        (8, {}, ("float", 8, 4, 2)),
        (3, {"bits": (8, 2), "include_float": False}, (8, 3, 2)),
        (7, {"bits": (4,), "include_float": False}, (7, 4)),
        (5, {"bits": (), "include_float": False}, (5,)),
    ],
)
def test_passes_from_the_highest_precision_down(target: int, settings: Any, widths: tuple[Bits, ...]) -> None:
    model, seen = network(), []
    own = prepared(model, target, **settings)

    def noted(images: Tensor) -> Tensor:
        seen.append(next(iter(switched(model).values())).switch.active)
        result: Tensor = model(images)
        return result

    assert own.widths == widths
    now = Step(0, 1, model)
    own.on_step_start(now)
    assert next(iter(switched(model).values())).switch.active == widths[0]
    one_step(own, model, noted)
    assert tuple(seen) == widths[1:]


@pytest.mark.parametrize("distillation", ["recursive", "highest", "labels"])
@pytest.mark.parametrize("include_float", [True, False])
@pytest.mark.parametrize("target", [3, 2])
def test_a_steps_gradients_and_statistics_by_hand(target: int, include_float: bool, distillation: str) -> None:
    """Each bit-width's pass through a network of its own, whose losses' gradients add up."""
    model = network()
    own = prepared(model, target, bits=(2, 8), include_float=include_float, distillation=distillation)
    unlike(model)
    latent = {name: layer.weight for name, layer in weight_layers(model).items()}
    (images, labels), logits, sums = batch(), [], {name: torch.zeros_like(w) for name, w in latent.items()}
    singles: dict[Bits, nn.Sequential] = {}
    for width in own.widths:
        single = network()
        single.load_state_dict({k: v for k, v in model.state_dict().items() if "other_widths" not in k})
        for name, norm in switched(model).items():
            state = of_width(norm, width, target).state_dict()
            single.get_submodule(name).load_state_dict({k: v for k, v in state.items() if "." not in k})
        leaves = {name: w.detach().clone().requires_grad_() for name, w in latent.items()}
        rounded = {f"{name}.weight": by_hand(w, width) for name, w in leaves.items()}
        logits.append(torch.func.functional_call(single, rounded, (images,)))
        if len(logits) == 1 or distillation == "labels":
            loss = functional.cross_entropy(logits[-1], labels)
        else:
            loss = soft(logits[-1], logits[-2] if distillation == "recursive" else logits[0])
        loss.backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            sums[name] += leaf.grad
        singles[width] = single
    one_step(own, model)
    for name, weight in latent.items():
        torch.testing.assert_close(weight.grad, sums[name], rtol=1e-9, atol=1e-12)
    for name, norm in switched(model).items():
        for width, single in singles.items():
            ours, theirs = of_width(norm, width, target), single.get_submodule(name)
            torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]
            for statistic, value in theirs.named_buffers():
                torch.testing.assert_close(ours.get_buffer(statistic), value, rtol=1e-12, atol=0)


def test_between_steps_it_is_the_target_bits_network() -> None:
    model = network()
    own = prepared(model)
    unlike(model)
    one_step(own, model)
    images, _ = batch()
    target = deepcopy(model).eval()
    own.deploy(target, BitWidths(3), NO_DATA)
    assert torch.equal(model.eval()(images), target(images))
    for width in own.widths:
        deployed = deepcopy(model).eval()
        own.deploy(deployed, BitWidths.of(width), NO_DATA)
        assert torch.equal(deployed(images), target(images)) == (width == 3)


def test_a_pass_that_fails_leaves_the_target_bit() -> None:
    model = network()
    own = prepared(model)

    def fails(images: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        one_step(own, model, fails)
    assert {norm.switch.active for norm in switched(model).values()} == {3}


def test_a_copy_switches_as_one_and_apart_from_its_source() -> None:
    model = network()
    own = prepared(model)
    copy = deepcopy(model)
    own.on_step_start(Step(0, 1, model))
    quantizers: list[Any] = [layer.weight_quantizer for layer in attach(copy).values()]
    switches = {id(holder.switch) for holder in (*switched(copy).values(), *quantizers)}
    assert len(switches) == 1
    assert quantizers[0].switch.active == 3


def test_the_tracker_reads_the_target_bits_codes() -> None:
    session = session_of(["any_precision"], VIT)
    train(session, lambda metrics: None)
    for name, layer in weight_layers(session.model).items():
        bounded = layer.weight.detach().double().tanh()
        unit = (bounded / bounded.abs().max() / 2 + 0.5) * 7
        away = (unit - unit.floor() - 0.5).abs() > 1e-4  # of a tie, where fp32 and fp64 may differ
        codes = session.tracker.state_dict()[name]["code"]
        assert torch.equal(codes[away].int(), (unit.round() - 4).int()[away])


class OwnForward(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-1)) + 1


def test_norms_of_any_class_with_hooks_and_ties() -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    tied = OwnForward(6)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), BatchNormAct2d(6), nn.GroupNorm(2, 6), nn.Flatten(2), nn.Linear(16, 6), tied, OwnForward(6)
    )
    model[6].weight = tied.weight
    calls: list[str] = []
    for norm in (model[1], model[2], model[5]):
        norm.register_forward_hook(lambda module, args, output: calls.append("called"))
    classes = [type(layer) for layer in model]
    own = prepared(model, bits=(2,))
    unlike(model)
    images = torch.randn(5, 2, 4, 4)
    model(images)
    assert len(calls) == 3
    own.on_step_start(Step(0, 1, model))
    outcome = model.eval()(images)
    assert len(calls) == 6, "once a pass, copies or not"
    copies: list[Any] = [of_width(model[place], "float") for place in (1, 5, 6)]
    assert copies[1].weight is copies[2].weight
    assert copies[1].weight is not tied.weight
    assert isinstance(copies[0].act, nn.ReLU)
    deployed = deepcopy(model)
    own.deploy(deployed, BitWidths(), NO_DATA)
    assert torch.equal(deployed(images), outcome)
    assert [type(layer) for layer in deployed][1::5] == classes[1::5]
    assert not any("other_widths" in name for name in deployed.state_dict())


def test_excluded_norms_are_shared() -> None:
    model = network()
    own = prepared(model, exclude=("1", "4"))
    assert list(switched(model)) == ["5"]
    one_step(own, model)
    assert int(model[1].num_batches_tracked) == len(own.widths)  # type: ignore[arg-type, operator]
    assert not isinstance(model[4], QuantLayer)
    with pytest.raises(UserError, match="needs norm layers, and exclude matches all of this model's"):
        prepared(network(), exclude=("1", "5"))


def test_a_low_bit_width_needs_norms_of_its_own() -> None:
    """Trained jointly, 2 bits do worse with the norms of float: 0.44 for 0.29 nats when this was written.

    Deeper networks lose more: ResNet-18 (width 8, 5 epochs of digits, all but one norm shared) had 45 % for 89 %.
    """
    torch.manual_seed(0)
    hidden = [(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(8)]
    model = nn.Sequential(nn.Flatten(), *(layer for block in hidden for layer in block), nn.Linear(64, 10))
    own, data = prepared(model, bits=(2,)), session_of(["none"], {"name": "mlp5"}, data={"name": "digits"}).dataset
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        one_step(own, model, given=data.train_batch(torch.randint(len(data.train), (64,), generator=generator), None))
        optimizer.step()
    losses = []
    for _ in range(2):
        deployed = deepcopy(model).eval()
        own.deploy(deployed, BitWidths(2), NO_DATA)
        images, labels = data.batch(data.test, slice(None))
        losses.append(float(functional.cross_entropy(deployed(images), labels).detach()))
        set_norms(model, "float", into=2)
    assert losses[1] > 1.2 * losses[0]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """With batch norms; the conformance suite resumes on layer norms."""
    sessions = [session_of([{"name": "any_precision", "bits": [2]}]) for _ in range(2)]
    indices = torch.arange(40)
    step(sessions[0], indices)
    checkpoint.save(tmp_path / "parts.pt", sessions[0])
    checkpoint.restore(tmp_path / "parts.pt", sessions[1])
    for session in sessions:
        step(session, indices)
    state = sessions[1].model.state_dict()
    for key, value in sessions[0].model.state_dict().items():
        assert torch.equal(value, state[key]), key
