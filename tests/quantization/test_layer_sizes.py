"""Sizes and costs of layers, and tables of kernel times."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.quantization.kernel_times import kernel_times
from harness.quantization.layer_sizes import LayerSize, layer_sizes
from harness.quantization.layers import attach

CPU = torch.device("cpu")


def sizes() -> dict[str, LayerSize]:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.Flatten(2), nn.Linear(9, 5)
    )
    return layer_sizes(model, attach(model), torch.randn(3, 4, 8, 8))


def test_sizes_by_hand() -> None:
    found = sizes()
    assert list(found) == ["0", "2", "4"]
    assert found["0"] == LayerSize(8 * 2 * 9, 4 * 64, rows=64, inner=18, outer=4, groups=2)
    assert found["2"] == LayerSize(6 * 8 * 9, 8 * 64, rows=9, inner=72, outer=6)
    assert found["4"] == LayerSize(45, 54, rows=6, inner=9, outer=5)
    assert [each.multiplications for each in found.values()] == [64 * 18 * 8, 9 * 72 * 6, 6 * 9 * 5]
    assert found["0"].product == "64x18x4x2"


def test_a_layer_that_is_called_twice() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    assert layer_sizes(model, attach(model), torch.randn(2, 4)) == {"0": LayerSize(16, 8, rows=2, inner=4, outer=4)}


def test_costs_of_points() -> None:
    size = sizes()["4"]
    assert size.bit_operations(BitWidths(3, 4)) == 270 * 12
    assert size.bit_operations(BitWidths(3)) == 270 * 3 * 32
    assert size.bytes(BitWidths(4, 8)) == 45 / 2 + 54
    assert size.bytes(BitWidths(4)) == 45 / 2 + 54 * 4


def test_times_are_measured_once_and_then_read(tmp_path: Path) -> None:
    path, own = tmp_path / "deep/table.json", sizes()
    first = kernel_times(path, own.values(), CPU)
    text = path.read_bytes()
    assert kernel_times(path, own.values(), CPU) == first
    assert path.read_bytes() == text
    table = json.loads(text)
    assert set(table) == {"device", "torch", "products"}
    assert set(table["products"]) == {each.product for each in own.values()}
    assert all(seconds > 0 for pair in first.seconds.values() for seconds in pair)
    assert list(path.parent.iterdir()) == [path]
    table["products"]["6x9x5"] = {"fp32": 3.0, "int8": 2.0}
    path.write_text(json.dumps(table))
    edited = kernel_times(path, own.values(), CPU)
    assert edited.digest != first.digest
    assert edited.of(own["4"], BitWidths(4, 8)) == 1.0
    assert edited.of(own["4"], BitWidths(8)) == 0.75


def test_tables_that_do_not_serve_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for text, said in (("{", "no table of kernel times"), ('{"products": {"1x1x1": {"fp32": 1}}}', "KeyError: 'int8'")):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            kernel_times(path, sizes().values(), CPU)
    path.write_text('{"products": {"1x1x1": {"fp32": 1, "int8": 1}}}')
    with pytest.raises(
        UserError, match=r"table.json: has no time of the products 64x18x4x2, 9x72x6, 6x9x5 \(it has: 1x1x1"
    ):
        kernel_times(path, sizes().values(), CPU)
