"""Inputs of layers as matrices: the layer's output follows from them, and second moments are sums over them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.methods.base import Calibration
from harness.quantization import layer_inputs
from harness.quantization.layer_inputs import as_weight, columns, inputs_of, moments, order_of_calls, weight_rows
from harness.quantization.layers import QuantLayer, attach

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (4, 6)),
    "tokens": (nn.Linear(6, 5, bias=False), (4, 3, 6)),
    "conv": (nn.Conv2d(4, 6, 3), (3, 4, 7, 6)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0)), (3, 4, 7, 6)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (3, 4, 7, 6)),
    "same": (nn.Conv2d(4, 6, (1, 4), dilation=(1, 2), padding="same"), (3, 4, 7, 6)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 7, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, stride=2), (3, 4, 7, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (3, 4, 7, 6)),
    "1x1": (nn.Conv2d(4, 6, 1, stride=2), (3, 4, 7, 6)),
}


def slotted(module: nn.Module) -> QuantLayer:
    return attach(nn.Sequential(module))["0"]


@pytest.mark.parametrize("parts", [2**26, 1], ids=["whole", "image by image"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_output_follows_from_columns_and_rows(kind: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_inputs, "_LARGEST", parts)
    module, shape = LAYERS[kind]
    layer: Any = slotted(module)
    if len(shape) == 4:
        layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    x = torch.randn(shape)
    rows = weight_rows(layer, layer.weight)
    found = torch.cat(list(columns(layer, x)), dim=1) @ rows.transpose(1, 2)  # (G, T, R)
    places = layer(x) if layer.bias is None else layer(x) - layer.bias.view(-1, *([1] * (len(shape) - 2)))
    expected = places.movedim(1, -1) if len(shape) == 4 else places
    torch.testing.assert_close(found.permute(1, 0, 2).reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)
    back = as_weight(rows.double(), layer.weight)
    assert torch.equal(back, layer.weight)
    assert back.stride() == layer.weight.stride()


def test_moments_are_means_over_rows_of_one_network_or_two() -> None:
    layer = slotted(nn.Conv2d(4, 6, 3, groups=2))
    xs, ys = ([torch.randn(count, 4, 5, 5) for count in (3, 2)] for _ in range(2))
    (own,), (again, cross) = moments(layer, xs), moments(layer, xs, ys)
    x, y = (torch.cat([next(columns(layer, each)) for each in some], dim=1).double() for some in (xs, ys))
    assert own.dtype == torch.float64
    assert torch.equal(own, again)
    torch.testing.assert_close(own, x.transpose(1, 2) @ x / x.shape[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cross, x.transpose(1, 2) @ y / x.shape[1], atol=1e-6, rtol=1e-5)


class Winding(nn.Module):
    """Calls its layers in another order than it has them, one of them twice, one never; counts how far it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.twice, self.never = (nn.Linear(4, 4) for _ in range(4))
        self.ends = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.twice(self.first(x))))
        self.ends += 1
        return self.last(x)


def test_order_number_and_inputs_of_calls() -> None:
    model = Winding()
    layers = attach(model)
    images = torch.randn(300, 4)
    assert list(order_of_calls(model, layers, images[:1]).items()) == [("first", 1), ("twice", 2), ("last", 1)]
    with torch.no_grad():
        once = model.first(images)
        then = model.twice(once).relu()
        end = model.twice(then)
    ends = model.ends
    seen = list(inputs_of(model, layers["twice"], images, calls=2))
    assert model.ends == ends, "stopped behind the layer"
    assert len(seen) == 2 * 3, "batches of 128"
    torch.testing.assert_close(torch.cat(seen[::2]), once)
    torch.testing.assert_close(torch.cat(seen[1::2]), then)
    torch.testing.assert_close(torch.cat(list(inputs_of(model, layers["last"], images))), end)
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_an_input_is_seen_as_the_weight_meets_it() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    attach(model, input_quantizer=lambda layer: nn.ReLU())
    x = torch.randn(5, 3)
    (seen,) = inputs_of(model, model[0], x)  # type: ignore[arg-type]
    assert torch.equal(seen, x.relu())


def test_calibration_images_do_not_come_twice() -> None:
    batches = [torch.arange(3.0), torch.arange(3.0, 5.0)]
    calibration = Calibration(lambda index: (batches[index % 2], torch.zeros(0)), different=2)
    assert calibration.images(1).tolist() == [0]
    assert calibration.images(4).tolist() == [0, 1, 2, 3]
    assert calibration.images(7).tolist() == [0, 1, 2, 3, 4]
