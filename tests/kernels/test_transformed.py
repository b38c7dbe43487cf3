"""Where torch records or transforms a network, plain operations run: in C, a pass would go unseen or crash."""

import copy
import io
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from quantizers_common import normal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, hessian, jacrev, vmap
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from harness import LSQQuantizer, MaxAbsQuantizer, OscillationRegularizer, attach
from harness.kernels import cpu, dispatch
from harness.quantization import ClippedQuantizer, FrozenQuantizer, StatisticalQuantizer, WeightQuantizer
from harness.quantization.layers import QuantLayer

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

QUANTIZERS: dict[str, Callable[[QuantLayer], WeightQuantizer]] = {
    "max-abs": lambda layer: MaxAbsQuantizer(3),
    "clipped": lambda layer: ClippedQuantizer(3, per_channel=True),
    "lsq": lambda layer: LSQQuantizer(3, per_channel=True),
    "frozen": lambda layer: FrozenQuantizer(LSQQuantizer(3), layer.weight),
    "statistical": lambda layer: StatisticalQuantizer(3, per_channel=True),
}
INPUTS, OTHERS = normal(2, 1, 6, 6), normal(2, 1, 6, 6, seed=1)


@pytest.fixture(params=list(QUANTIZERS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return network(QUANTIZERS[request.param])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: deprecated in torch itself
        yield


def network(quantizer: Callable[[QuantLayer], nn.Module]) -> nn.Sequential:
    """A strided 1x1 convolution and a linear layer, with inputs on a grid, too."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, stride=2)
    model = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    attach(model, weight_quantizer=quantizer, input_quantizer=lambda layer: MaxAbsQuantizer(8))
    return model


def gradients(call: Callable[[Tensor], Tensor], model: nn.Module, inputs: Tensor = OTHERS) -> list[Tensor]:
    model.zero_grad()
    call(inputs).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Sums of the passes are in double precision, those of operations are not."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_traced_network_computes_and_learns_as_it_does(model: nn.Module) -> None:
    traced = torch.jit.trace(model, INPUTS, check_trace=False)
    assert torch.equal(traced(OTHERS), model(OTHERS))
    assert_same(gradients(traced, traced), gradients(model, model))


def test_a_traced_network_can_be_saved(model: nn.Module) -> None:
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, INPUTS, check_trace=False), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(OTHERS), model(OTHERS))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_a_network_goes_to_onnx(dynamo: bool, tmp_path: Any) -> None:
    import onnxruntime as runtime

    for build in (QUANTIZERS["max-abs"], QUANTIZERS["lsq"]):
        model = network(build)
        torch.onnx.export(model, (INPUTS,), tmp_path / "model.onnx", dynamo=dynamo, verbose=False)
        session = runtime.InferenceSession(tmp_path / "model.onnx")
        (found,) = session.run(None, {session.get_inputs()[0].name: OTHERS.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(OTHERS).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_exported_network(model: nn.Module) -> None:
    exported = torch.export.export(model, (INPUTS,), strict=False)
    assert torch.equal(exported.module()(OTHERS), model(OTHERS))


def test_a_graph_of_fx(model: nn.Module) -> None:
    graph = symbolic_trace(model)
    assert torch.equal(graph(OTHERS), model(OTHERS))
    assert_same(gradients(graph, graph), gradients(model, model))


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_a_graph_of_make_fx_holds_all_operations(model: nn.Module, mode: Any) -> None:
    """With real tensors, a pass would leave memory in the graph that nothing writes to."""
    state = {name: value.detach() for name, value in model.state_dict().items()}

    def call(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
        output: Tensor = functional_call(model, state, (inputs,))
        return output

    graph = make_fx(call, tracing_mode=mode)(state, INPUTS)
    others = {name: value * 1.5 if value.is_floating_point() else value for name, value in state.items()}
    assert torch.equal(graph(others, OTHERS), call(others, OTHERS))


def test_functions_of_torch_func(model: nn.Module) -> None:
    state, name = {name: value.detach() for name, value in model.state_dict().items()}, "1.weight"

    def loss(weight: Tensor) -> Tensor:
        total: Tensor = functional_call(model, {**state, name: weight}, (OTHERS,)).square().sum()
        return total

    weight = model.get_parameter(name)
    together = vmap(loss)(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(together, torch.stack([loss(weight), loss(2 * weight)]))
    (wanted,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    assert_same([torch.func.grad(loss)(weight.detach())], [wanted])
    rows = [torch.autograd.grad(each, weight, retain_graph=True)[0] for each in wanted.flatten()]
    second = torch.stack(rows).view(*weight.shape, *weight.shape)
    for function in (hessian(loss), jacrev(jacrev(loss))):
        torch.testing.assert_close(function(weight.detach()), second, rtol=1e-3, atol=1e-4)


def test_forward_mode_and_gradients_in_batches(model: nn.Module) -> None:
    (layer, *_) = attach(model).values()
    weight, tangent = layer.weight, normal(*layer.weight.shape, seed=3)
    output = layer.quantized_weight().flatten()
    every = torch.eye(output.numel())
    (rows,) = torch.autograd.grad(output, weight, every, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(output, weight, row, retain_graph=True)[0] for row in every]
    assert_same(list(rows), one_by_one)
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(layer.weight_quantizer(forward_ad.make_dual(weight.detach(), tangent))).tangent
    assert moved is not None
    torch.testing.assert_close(moved.flatten(), rows.flatten(1) @ tangent.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted({*QUANTIZERS} - {"clipped"}))  # whose search takes seconds there
def test_tensors_that_hold_no_numbers(kind: str) -> None:
    with FakeTensorMode():
        fake = network(QUANTIZERS[kind])
        assert len(gradients(fake, fake, torch.zeros(2, 1, 6, 6))) >= 6
        OscillationRegularizer(fake, 3, 1.0).add_gradient()
    assert fake[0].quantized_weight().shape == (4, 1, 3, 3), "outside of the mode, too"
    with torch.device("meta"):
        meta = network(QUANTIZERS[kind])
        assert len(gradients(meta, meta, torch.zeros(2, 1, 6, 6))) >= 6
    real = network(QUANTIZERS[kind])
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(real[0].quantized_weight()) is not Tensor


class Seen(Exception):
    """A pass ran."""


def test_a_pass_serves_real_tensors_on_the_eager_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager training goes by passes as before, for parameters and for plain tensors."""

    def seen(*arguments: object) -> None:
        raise Seen

    model = network(QUANTIZERS["max-abs"])
    monkeypatch.setattr(cpu, "quantize", seen)
    for weight in (model[0].weight, model[0].weight.detach(), copy.deepcopy(model)[0].weight):
        assert dispatch.eager(weight)
        with pytest.raises(Seen):
            model[0].weight_quantizer(weight)

    class Sub(Tensor):
        pass

    sub = model[0].weight.detach().as_subclass(Sub)
    assert not dispatch.serves(sub)
    assert type(model[0].weight_quantizer(sub)) is Sub
    assert not dispatch.serves_images(torch.zeros(1, 1, 2, 2, dtype=torch.uint8).as_subclass(Sub))
