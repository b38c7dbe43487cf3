"""The ONNX format, run by onnxruntime: minutes in all, so only what is refused before is in the default suite."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conformance_common import pairs
from pages import REPOSITORY
from torch import nn

import harness
from harness.core import registry
from harness.exporting import onnx_file
from harness.exporting.runs import export_run
from harness.quantization import CompandingQuantizer, StatisticalQuantizer, WeightQuantizer
from harness.quantization.layers import attach
from harness.sweep.cells import expand
from harness.sweep.config import read_sweep
from harness.training.config import complete
from harness.training.run import run

MLP = {"name": "mlp5", "width": 24}
MODELS: dict[str, dict[str, Any]] = {
    "mlp5": MLP,
    "resnet18": {"name": "resnet18", "width": 16},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2, "patch": 4},
    # A block a stage: its graph has every operator of the whole one.
    "tiny_vit": {"name": "tiny_vit", "embed_dims": (32, 64, 96, 160), "depths": (1, 1, 1, 1)},
    "timm": {"name": "timm:resnet10t"},
}
RAW: dict[str, Any] = {
    "target_bit": 4,
    "data": {"name": "digits", "train_fraction": 0.2},
    "train": {"epochs": 1, "batch_size": 32},
    "deploy": {"bits": [4, "w4a8"], "scale": "keep_range"},
    "activations": {"calibration_batches": 1},
    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
}
#: What a method needs to train here, and what its deployment takes.
STACKS: dict[str, Any] = {
    "adaround": ["ste", {"name": "adaround", "images": 32, "iterations": 10}],
    "gptq": ["ste", {"name": "gptq", "images": 32}],
    "bn_reestimation": ["ste", "bn_reestimation"],
    "freezing": ["ste", "freezing"],
    "cga": ["lsq", "cga"],
    "qkr": ["qkr", "lsq"],
}
#: Each method on the smallest network that it fits: all pairs take a quarter of an hour.
SMALL = {name: MODELS[name] for name in ("mlp5", "vit_tiny")}
FIRST_FIT = list({str(pair.values[0]): pair for pair in reversed(pairs(registry.names("method"), SMALL))}.values())


def sizes(folder: Path) -> dict[str, int]:
    return {path.suffix: path.stat().st_size for path in folder.glob("*-rtn.*")}


def types(path: Path) -> set[int]:
    return {each.data_type for each in onnx.load(path).graph.initializer}


def check_exports(finished: Path, folder: Path) -> list[str]:
    """Export a run at w4 and w4a8 in both formats; returns the lines that compare scores.

    The command itself refuses a file whose score is another than the record's: by more than 0.1 points of accuracy or
    one image, 0.05 dB, or 0.01 bits per character.
    """
    lines = []
    for point in (4, "w4a8"):
        to = folder / str(point)
        lines += [export_run(finished, point, kind=kind, to=to)[-1] for kind in ("packed", "onnx")]
        found = sizes(to)
        assert found[".onnx"] <= 1.15 * found[".safetensors"] + 64 * 1024
        path = next(to.glob("*.onnx"))
        assert onnx.TensorProto.INT4 in types(path)
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert ("QuantizeLinear" in operators) == (point == "w4a8")
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model(name: str, tmp_path: Path) -> None:
    run(complete({**RAW, "methods": "lsq", "model": MODELS[name]}), tmp_path / "run")
    check_exports(tmp_path / "run", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "oscillation"])
def test_finals_of_the_quickstart(method: str, tmp_path: Path) -> None:
    short = ("train.epochs=1", "deploy.bits=[4,w4a8]", "runtime.wandb=off", "runtime.threads=1", "runtime.device=cpu")
    spec = read_sweep(REPOSITORY / "sweeps/quickstart.yaml", short)
    cell = next(each for each in expand(spec, checked=False) if each.id.startswith(method))
    run(cell.config({name: next(iter(each.points())) for name, each in cell.search.items()}, 0, "final"), tmp_path)
    check_exports(tmp_path, tmp_path)


@pytest.mark.slow
def test_super_resolution(tmp_path: Path) -> None:
    task = {"model": {"name": "edsr", "blocks": 2, "features": 8}, "data": {"name": "sample_images"}}
    run(complete({**RAW, **task, "methods": "lsq", "train": {"epochs": 0}}), tmp_path)
    assert all(" dB in the record" in line for line in check_exports(tmp_path, tmp_path))


@pytest.mark.slow
def test_a_language_model(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{number} squared is {number**2}\n" for number in range(200)))
    text = {"name": "text", "context": 12, "windows": 32, "root": str(tmp_path / "text.txt")}
    model = {"name": "llama", "layers": 1, "width": 16, "heads": 2, "kv_heads": 1}
    train = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2}
    run(complete({**RAW, "methods": "lsq", "data": text, "model": model, "train": train}), tmp_path / "run")
    assert all("bits per character" in line for line in check_exports(tmp_path / "run", tmp_path))
    runner = onnx_file.Runner(next((tmp_path / "w4a8").glob("*.onnx")))
    assert runner(torch.zeros(3, 5, dtype=torch.int64)).shape[:2] == (3, 5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "model"), FIRST_FIT)
def test_every_method(method: str, model: str, tmp_path: Path) -> None:
    target = {"target_bit": None, "watch_bit": 4} if method == "none" else {}
    run(complete({**RAW, "methods": STACKS.get(method, method), "model": MODELS[model], **target}), tmp_path)
    export_run(tmp_path, 4, kind="packed")
    export_run(tmp_path, "w4a8", kind="onnx")  # weights of 4 bits, too; test_every_model has all points in both formats


QUANTIZERS = {"table": CompandingQuantizer, "without a zero": StatisticalQuantizer}


@pytest.mark.slow
@pytest.mark.parametrize("channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_other_grids(name: str, bits: int, channel: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 36, 12)).eval()

    def quantizer(layer: nn.Module) -> WeightQuantizer:
        one = QUANTIZERS[name](bits, channel)
        if isinstance(one, CompandingQuantizer):
            with torch.no_grad():
                assert one.log_slopes is not None
                one.log_slopes.copy_(torch.linspace(-1, 1, 16))
        return one

    attach(model, weight_quantizer=quantizer)
    images = torch.randn(3, 2, 8, 8)
    path = tmp_path / "net.onnx"
    exported = harness.export(model, "trained", path, "onnx", images)
    more = torch.randn(7, 2, 8, 8)
    found = onnx_file.Runner(path)(more)
    torch.testing.assert_close(found, exported.model(more).detach(), rtol=1e-4, atol=1e-4)
    four = {onnx.TensorProto.UINT4, onnx.TensorProto.INT4}  # eight levels fit in either
    eight = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
    assert types(path) & (four if bits <= 4 else eight)
