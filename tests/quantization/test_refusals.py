"""Layers that a quantizer cannot serve are refused by name, with what to do about each."""

import copy
import re
from collections.abc import Callable

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from harness import MaxAbsQuantizer, OscillationRegularizer, OscillationTracker, attach, round_to_nearest
from harness.core.errors import UserError
from harness.quantization.layers import QuantLinear


def _pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return prune.random_structured(layer, "weight", 0.5, dim=0)


COMPUTED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "weight_norm": (weight_norm, "torch.nn.utils.remove_weight_norm(layer)"),
    "spectral_norm": (spectral_norm, "torch.nn.utils.remove_spectral_norm(layer)"),
    "prune": (_pruned, "torch.nn.utils.prune.remove(layer, 'weight')"),
    "parametrizations": (parametrizations.orthogonal, "remove_parametrizations(layer, 'weight')"),
}
USES: list[Callable[[nn.Module], object]] = [
    attach,
    lambda model: OscillationRegularizer(model, 3, 1.0),
    lambda model: OscillationTracker(model, 3),
    lambda model: round_to_nearest(model, 4),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1)], ids=["linear", "convolution"])
def test_a_weight_that_is_computed_from_other_tensors(layer: nn.Module, kind: str) -> None:
    change, undo = COMPUTED[kind]
    model = nn.ModuleDict({"odd": change(copy.deepcopy(layer)), "head": nn.Linear(4, 2)})
    for use in USES:
        with pytest.raises(UserError, match=rf"layer 'odd': the weight of this .* is computed.*{re.escape(undo)}"):
            use(model)
    assert list(attach(model, ["odd"])) == ["head"]


@pytest.mark.parametrize("kind", ["prune", "parametrizations"])
def test_a_weight_that_is_computed_once_the_layer_has_slots(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    COMPUTED[kind][0](model[0])
    with pytest.raises(UserError, match="layer '0'"):
        round_to_nearest(model, 4)


def test_a_plain_tensor_in_place_of_the_weight() -> None:
    layer = nn.Linear(4, 4)
    del layer.weight
    layer.weight = torch.ones(4, 4)
    with pytest.raises(UserError, match=r"layer '0': the weight of this Linear is computed.*exclude it by name"):
        attach(nn.Sequential(layer))


def test_a_computed_weight_that_was_made_a_parameter_again() -> None:
    layer = prune.remove(_pruned(nn.Linear(4, 4)), "weight")
    assert list(attach(nn.Sequential(layer))) == ["0"]


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("layer", [nn.LazyLinear, lambda n: nn.LazyConv2d(n, 1), lambda n: _LazyOwn(n)])
def test_a_lazy_layer(layer: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(layer(3))
    for use in USES:
        with pytest.raises(UserError, match=r"layer '0': .*Lazy\w+ has no weights before its first forward pass; call"):
            use(model)
    model(torch.rand(2, 5, 4, 4 if isinstance(model[0], nn.LazyConv2d) else 3))
    assert list(attach(model)) == ["0"]


class _LazyOwn(nn.LazyLinear):
    pass


class Derived(timm.layers.Linear):
    pass


@pytest.mark.parametrize("kind", [timm.layers.Linear, Derived])
def test_timms_linear_layer_is_a_plain_one(kind: type[nn.Linear]) -> None:
    model = nn.Sequential(kind(4, 3))
    x = torch.rand(2, 4)
    before = model(x)
    attach(model)
    assert type(model[0]) is QuantLinear
    assert torch.equal(model(x), before)


def test_a_subclass_of_timms_linear_layer_with_a_forward_of_its_own() -> None:
    class Scaled(timm.layers.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(UserError, match="layer '0': Scaled computes its own forward"):
        attach(nn.Sequential(Scaled(4, 3)))


def test_a_layer_whose_forward_was_replaced_on_the_object() -> None:
    layer = nn.Linear(4, 3)
    layer.forward = lambda x: x @ layer.weight.T  # type: ignore[method-assign]
    with pytest.raises(UserError, match="layer '0': Linear computes its own forward"):
        attach(nn.Sequential(layer))
