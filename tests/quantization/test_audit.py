"""The audit runs a network and says of each parameter whether a quantizer reaches it."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import weight_norm

import harness
from harness import MaxAbsQuantizer, attach
from harness.core.errors import UserError
from harness.quantization.audit import BARE, EXCLUDED, FLOAT, OWN, PAST, QUANTIZED, UNUSED, Audit, audit


class Net(nn.Module):
    """A function of its modules, its parameters and (2, 4, 4) inputs."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape or (4, 4)))


def seen(net: nn.Module, exclude: tuple[str, ...] = ()) -> Audit:
    return audit(net, torch.rand(2, 4, 4), exclude)


#: The weight of `fc` is used, and its forward is not.
READ_PAST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "as timm's attention reads qkv": lambda m, x: functional.linear(x, m.fc.weight),
    "transposed": lambda m, x: x @ m.fc.weight.T,
    "a part": lambda m, x: torch.einsum("bnc,dc->bnd", x, m.fc.weight[:2].tile(2, 1)),
    "after a mask": lambda m, x: functional.linear(x, m.fc.weight * (m.fc.weight.abs() > 0.1)),
    "scaled": lambda m, x: x * m.fc.weight,
    "within torch.no_grad": lambda m, x: x + torch.no_grad()(functional.linear)(x, m.fc.weight),
    "in evaluation alone": lambda m, x: m.fc(x) if m.training else functional.linear(x, m.fc.weight),
    "and called as well": lambda m, x: m.fc(x) + x @ m.fc.weight,
}


@pytest.mark.parametrize("case", READ_PAST)
def test_a_layer_that_is_read_and_not_called(case: str) -> None:
    net = nn.Sequential(Net(READ_PAST[case], fc=nn.Linear(4, 4, bias=False)), nn.Linear(4, 4))
    found = seen(net)
    assert found.named(PAST) == ["0.fc.weight"]
    with pytest.raises(UserError, match=r"layer '0\.fc': the network reads the weight without calling the layer"):
        found.check()
    excluded = seen(net, ("0.fc",))
    excluded.check()
    assert excluded.summary() == {QUANTIZED: 1, FLOAT: 1, EXCLUDED: ["0.fc.weight"], UNUSED: []}


def test_a_convolution_whose_inner_forward_is_called() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    net = Net(lambda m, x: m.conv._conv_forward(x[:, None], m.conv.weight, None), conv=conv)
    assert seen(net).named(PAST) == ["conv.weight"]


def test_timms_attention_is_made_to_call_its_layer() -> None:
    beit = pytest.importorskip("timm.models.beit").Beit(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    images = torch.rand(2, 3, 16, 16)
    plain = beit.eval()(images)
    audited = audit(beit, images)
    audited.check()
    assert not beit.blocks[0].attn.qkv_bias_separate, "the model stays as it is until slots are attached"
    attach(beit)
    assert torch.allclose(beit(images), plain, atol=1e-5)  # a bias added later rounds otherwise
    beit.blocks[0].attn.qkv_bias_separate = False
    assert audit(beit, images).named(PAST) == ["blocks.0.attn.qkv.weight"]
    excluded = copy.deepcopy(beit)
    attach(excluded, ["blocks.0.attn.qkv"])
    assert not excluded.blocks[0].attn.qkv_bias_separate


def test_one_weight_in_two_layers_of_which_one_is_called() -> None:
    net = Net(lambda m, x: m.a(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    net.b.weight = net.a.weight
    assert seen(net).named(QUANTIZED) == ["a.weight", "b.weight"]


def test_an_embedding_that_shares_its_weight_with_a_layer_that_is_not_called() -> None:
    net = Net(lambda m, x: m.fc(m.embed((4 * x[..., 0]).long())), embed=nn.Embedding(4, 4), fc=nn.Linear(4, 4))
    net.head = nn.Linear(4, 4, bias=False)
    net.head.weight = net.embed.weight
    found = seen(net)
    found.check()
    assert (found.parameters["embed.weight"], found.parameters["head.weight"]) == (FLOAT, UNUSED)


def test_a_layer_under_two_names() -> None:
    layer = nn.Linear(4, 4, bias=False)
    assert seen(Net(lambda m, x: m.b(m.a(x)), a=layer, b=layer)).parameters == {
        "a.weight": QUANTIZED,
        "b.weight": QUANTIZED,
    }
    read = seen(Net(lambda m, x: x @ m.b.weight, a=layer, b=layer))
    assert read.named(PAST) == ["a.weight", "b.weight"]


def test_a_bare_layer() -> None:
    assert seen(nn.Linear(4, 4, bias=False)).parameters == {"weight": QUANTIZED}


def _mixture(m: Any, x: Tensor) -> Tensor:
    """Two experts on the tokens, weighted."""
    return torch.einsum("bnc,ecd->bned", x, m.w).mean(2)


#: What `w`, a parameter of the module `odd` itself, does in a product.
MULTIPLIED: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "GPT-2's Conv1D": (lambda m, x: torch.addmm(m.b, x.view(-1, 4), m.w).view(2, 4, 4), (4, 4)),
    "experts": (_mixture, (2, 4, 4)),
    "a linear layer of one's own": (lambda m, x: functional.linear(x, m.w, m.b), (4, 4)),
    "bmm": (lambda m, x: torch.bmm(x, m.w), (2, 4, 4)),
    "a convolution": (lambda m, x: functional.conv1d(x, m.w), (4, 4, 1)),
    "of low rank": (lambda m, x: x @ (m.w @ m.w.T), (4, 2)),
    "standardized": (lambda m, x: functional.linear(x, functional.layer_norm(m.w, (4,))), (4, 4)),
    "learned keys": (lambda m, x: functional.scaled_dot_product_attention(x, m.w.expand(2, -1, -1), x), (4, 4)),
    "an embedding's transpose": (lambda m, x: functional.embedding(x.long(), m.w).sum(2) @ m.w.T, (4, 4)),
}


def odd(case: str) -> nn.Module:
    function, shape = MULTIPLIED[case]
    return nn.ModuleDict({"odd": Net(function, w=weight(*shape), b=weight(4)), "head": nn.Linear(4, 2)})


class Chain(nn.Module):
    """The modules of a dict, one after the other."""

    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():  # type: ignore[operator]
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return functools.reduce(lambda y, part: part(y), self.children(), x)


@pytest.mark.parametrize("case", MULTIPLIED)
def test_a_weight_of_a_modules_own(case: str) -> None:
    net = Chain(odd(case))
    found = seen(net)
    assert found.named(OWN) == ["odd.w"]
    assert found.parameters["head.weight"] == QUANTIZED
    with pytest.raises(UserError, match="layer 'odd': the network multiplies by a weight of its own there"):
        found.check()
    seen(net, ("odd",)).check()
    assert seen(net, ("od*",)).named(EXCLUDED) == ["odd.w", "odd.b"]


def test_a_weight_of_the_network_itself_is_excluded_by_its_own_name() -> None:
    net = Net(lambda m, x: m.fc(x @ m.w), w=weight(), fc=nn.Linear(4, 4))
    with pytest.raises(UserError, match="layer 'w': the network multiplies"):
        seen(net).check()
    seen(net, ("w",)).check()
    with pytest.raises(UserError, match=r"unknown layer in exclude 'fc\.weight'"):
        seen(net, ("fc.weight",))


#: What is only added, scaled or looked up.
FLOATING: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "a position embedding": (lambda m, x: m.fc(x + m.w), (4, 4)),
    "a class token": (lambda m, x: m.fc(torch.cat([m.w.expand(2, 1, 4), x], 1)), (1, 4)),
    "a layer scale": (lambda m, x: x + m.w * m.fc(x), (4,)),
    "a bias of attention": (lambda m, x: functional.scaled_dot_product_attention(x, x, m.fc(x), m.w), (4, 4)),
    "a table of biases": (lambda m, x: (x @ x.mT + m.w[torch.arange(4).tile(4, 1)]).softmax(-1) @ m.fc(x), (4,)),
    "learned queries that go through a layer": (lambda m, x: m.fc(m.w).expand(2, 4, 4) @ x, (4, 4)),
    "an embedding": (lambda m, x: m.fc(functional.embedding((x * 4).long(), m.w)), (4, 4)),
    "a norm": (lambda m, x: functional.layer_norm(m.fc(x), (4,), m.w), (4,)),
    "what is made of constants, and added": (lambda m, x: m.fc(x) + torch.eye(4) @ m.w, (4, 4)),
}


@pytest.mark.parametrize("case", FLOATING)
def test_what_is_added_scaled_or_looked_up_stays_float(case: str) -> None:
    function, shape = FLOATING[case]
    found = seen(Net(function, w=weight(*shape), fc=nn.Linear(4, 4)))
    found.check()
    assert found.parameters == {"w": FLOAT, "fc.weight": QUANTIZED, "fc.bias": FLOAT}


def test_what_is_never_used_is_said_and_stays() -> None:
    found = seen(Net(lambda m, x: m.a(x), a=nn.Linear(4, 4), spare=nn.Linear(4, 4), w=weight(4)))
    found.check()
    assert found.named(UNUSED) == ["w", "spare.weight", "spare.bias"]


def test_frozen_weights_count_as_others_do() -> None:
    net = Net(
        lambda m, x: functional.linear(m.a(x) * m.w, m.b.weight), a=nn.Linear(4, 4), b=nn.Linear(4, 4), w=weight(4)
    )
    found = seen(net.requires_grad_(False))
    assert (found.parameters["a.weight"], found.parameters["b.weight"], found.parameters["w"]) == (
        QUANTIZED,
        PAST,
        FLOAT,
    )


def test_a_layer_that_was_added_after_attach() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    attach(net, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    seen(net).check()
    net[1] = nn.Linear(4, 2)
    assert seen(net).named(BARE) == ["1.weight"]
    with pytest.raises(UserError, match="layer '1': other layers have slots"):
        seen(net).check()


def test_the_network_and_the_random_state_stay_as_they_are() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 4).requires_grad_(False)).half()
    net[0].eval()
    before, modes, types = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], list(map(type, net))
    inputs, random = torch.rand(2, 4).half(), torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu"):
        assert audit(net, inputs).named(UNUSED) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert list(map(type, net)) == types
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False] * 2
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_that_keeps_tensors_of_an_earlier_pass() -> None:
    net = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    net(torch.rand(2, 4))
    assert seen(net, ("0",)).named(EXCLUDED) == ["0.bias", "0.weight_g", "0.weight_v"]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        return {"logits": [self.fc(x) * scale]}


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs_and_nested_outputs(named: bool) -> None:
    x, scale = torch.rand(2, 4), torch.rand(1)
    found = audit(TwoInputs(), {"x": x, "scale": scale} if named else (x, scale))
    assert found.parameters == {"fc.weight": QUANTIZED, "fc.bias": FLOAT}


def test_an_audit_is_a_table_and_prints_nothing_itself(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    result = harness.audit(net, torch.rand(2, 4), exclude=["2"])
    assert capsys.readouterr().out == "", "print(audit(...)) shows the table once"
    assert repr(result) == str(result)
    printed = str(result).splitlines()
    assert printed[0] == "0.weight  quantized"
    assert printed[-2:] == ["2.weight  excluded", "1 quantized, 3 float by rule, 1 excluded"]
    result.check()


def test_many_layers_are_named_in_short() -> None:
    found = Audit({f"blocks.{index}.attn.qkv.weight": PAST for index in range(12)})
    with pytest.raises(UserError, match=r"layers 'blocks\.0\.attn\.qkv', .* and 7 more: the network reads"):
        found.check()
