"""Confidence-guided annealing: on which layers it works, which it leaves alone, and what it refuses."""

import pytest
import torch
from cga_common import near, prepared, session_of, steps
from test_dampening import Stepless, run_config
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.methods.base import Step
from harness.quantization import ClippedQuantizer, StatisticalQuantizer, WeightQuantizer
from harness.quantization.layers import attach
from harness.training.build import build


def test_only_the_layers_named() -> None:
    session = session_of(["statsq"], start=0.0, layers=["layer[23]", "layer5"])
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    next(steps(session))
    moved = {
        name: float((layer.weight != before[f"{name}.weight"]).float().mean())
        for name, layer in attach(session.model).items()
    }
    assert all(moved[name] < 0.1 for name in ("layer2", "layer3", "layer5")), moved
    assert moved["layer4"] > 0.9, moved
    assert session.methods[1].metrics()["cga/training_fraction"] < 0.1, "a part of its own layers"


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown layer in methods.cga.layers 'layre2'; did you mean 'layer2'"):
        session_of(["statsq"], layers=["layer1", "layre2"])


def tied(second: WeightQuantizer) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30))
    model[1].weight = model[0].weight
    attach(model, weight_quantizer=lambda layer: StatisticalQuantizer(2))
    model[1].weight_quantizer = second
    return model


def test_a_shared_weight_is_held_where_all_its_layers_are_confident() -> None:
    model = tied(StatisticalQuantizer(3))
    method = prepared(model, boundary=0.1)
    model[0].weight.grad = torch.ones(30, 30)
    first, second = near(model[0], 0.1), near(model[1], 0.1)  # type: ignore[arg-type]
    assert bool((first & ~second).any())
    assert bool((second & ~first).any())
    before = model[0].weight.detach().clone()
    method.after_backward(Step(0, 1, model))
    assert torch.equal(model[0].weight.grad.bool(), first | second)
    with torch.no_grad():
        model[0].weight.sub_(1.0)
    method.after_step(Step(0, 1, model))
    assert torch.equal(model[1].weight, torch.where(first | second, before - 1, before))
    total = first.numel() + near(model[2], 0.1).numel()  # type: ignore[arg-type]
    trains = int((first | second).sum() + near(model[2], 0.1).sum())  # type: ignore[arg-type]
    assert method.metrics()["cga/training_fraction"] == pytest.approx(trains / total)


def test_a_shared_weight_of_a_layer_that_is_not_named_trains_on() -> None:
    model = tied(StatisticalQuantizer(2))
    method = prepared(model, layers=("0", "2"))
    model[0].weight.grad, model[2].weight.grad = torch.ones(30, 30), torch.ones(30, 30)
    method.after_backward(Step(0, 1, model))
    assert bool(model[0].weight.grad.all())
    assert not model[2].weight.grad.all()
    with pytest.raises(UserError, match=r"'cga' finds no layer among \['0'\] whose weights it could hold"):
        prepared(tied(StatisticalQuantizer(2)), layers=("0",))


class Product(nn.Module):
    """(2 C, C), queries' weights above keys', to a matrix (C, C) for each head, (heads C, C)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, weight: Tensor) -> Tensor:
        queries, keys = weight.chunk(2)
        pairs = zip(queries.chunk(self.heads), keys.chunk(self.heads), strict=True)
        return torch.cat([query.T @ key for query, key in pairs])


class Standardized(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.std()


class Turned(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.flip(0)


@pytest.mark.parametrize("transform", [Product(1), Product(2), Product(4), Standardized(), Turned()], ids=repr)
@pytest.mark.parametrize("zeros", [True, False])
def test_what_is_not_transformed_entry_by_entry_is_left_alone(transform: nn.Module, zeros: bool) -> None:
    """Two heads give an effective weight of the weight's own shape."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False))
    if zeros:
        nn.init.zeros_(model[0].weight)
    attach(model, weight_quantizer=lambda layer: StatisticalQuantizer(2))
    model[0].fill("weight_transform", transform)  # type: ignore[operator]
    method = prepared(model, boundary=0.0)
    for layer in model:
        layer.weight.grad = torch.ones_like(layer.weight)
    method.after_backward(Step(0, 1, model))
    with torch.no_grad():
        model[0].weight.add_(1.0)
        wanted = model[0].weight.clone()
    method.after_step(Step(0, 1, model))
    assert bool(model[0].weight.grad.all())
    assert torch.equal(model[0].weight, wanted)
    assert not model[1].weight.grad.any()
    assert method.metrics() == {"cga/training_fraction": 0.0}
    with pytest.raises(UserError, match=r"'cga' finds no layer among \['0'\]"):
        prepared(model, layers=("0",))


@pytest.mark.parametrize("stack", [["satnl", "statsq"], ["satnl", "lsq"], ["satnl"]], ids=str)
def test_through_a_transform_entry_by_entry_the_effective_weight_decides(stack: list[str]) -> None:
    below = [{"name": "satnl", "kappa": 1.0, "kappa_unit": "std"}, *stack[1:]]
    session = session_of(below, start=0.0, boundary=0.05)
    layers = attach(session.model)
    masks = {name: near(layer, 0.05) for name, layer in layers.items()}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    next(steps(session))
    for name, layer in layers.items():
        assert torch.equal(layer.weight[~masks[name]], before[name][~masks[name]])
        if name != "layer1":
            assert not torch.equal(layer.weight[masks[name]], before[name][masks[name]])


def test_no_random_number_is_taken() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16))
    attach(model, weight_transform=lambda layer: nn.Tanh())
    state = torch.get_rng_state()
    prepared(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("present", [nn.Tanh(), Stepless(3)])
def test_what_tells_no_thresholds_is_refused_where_it_is_to_hold(present: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].__class__ = nn.Linear
    attach(model)
    model[0].fill("weight_quantizer", present)  # type: ignore[operator]
    with pytest.raises(UserError, match=rf"'cga' .* {type(present).__name__} of layer '0' does not give"):
        prepared(model)
    prepared(model, layers=("1",))


def test_before_a_quantizer_it_clashes() -> None:
    with pytest.raises(UserError, match=r"MaxAbsQuantizer, so LSQQuantizer cannot have it: two methods .* clash"):
        build(run_config(["cga", "lsq"]))


def test_excluded_layers_stay_float_and_train() -> None:
    config = run_config(["statsq", {"name": "cga", "start": 0.0}], exclude=["layer3"])
    session = build(config)
    excluded = session.model.get_parameter("layer3.weight")
    before = excluded.detach().clone()
    next(steps(session))
    assert float((excluded != before).float().mean()) > 0.2


def test_what_fills_an_empty_slot_is_fitted_to_the_effective_weight() -> None:
    below = {"name": "satnl", "kappa": 1.0, "kappa_unit": "std"}
    session = build(run_config([below, "cga"], quantizer={"range": "mse"}))
    for layer in attach(session.model).values():
        wanted = ClippedQuantizer(3).fit(layer.weight_transform(layer.weight))
        assert torch.equal(layer.weight_quantizer.ratio, wanted.ratio)  # type: ignore[arg-type]


def test_the_papers_layers_of_a_transformer() -> None:
    vit = {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2}
    last = {"name": "cga", "start": 0.0, "layers": ["*.mlp.fc*", "*.attn.proj"]}
    session = build(run_config(["statsq", last], vit))
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    next(steps(session))
    for name, layer in attach(session.model).items():
        moved = float((layer.weight != before[f"{name}.weight"]).float().mean())
        named = any(part in name for part in ("fc1", "fc2", "attn.proj"))
        assert moved < 0.1 if named else moved > 0.5, name
