"""The packed format by the library: `harness.export` and `harness.load_packed`."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import harness
from harness.core.errors import UserError
from harness.exporting import onnx_file, packed
from harness.exporting.inputs import GridInput, built, described, plain_input
from harness.exporting.network import taken
from harness.quantization import (
    ActivationQuantizer,
    LearnedStepQuantizer,
    MovingRangeQuantizer,
    Observed,
    StaticQuantizer,
    TokenQuantizer,
)
from harness.quantization.learned_thresholds import LearnedThresholdQuantizer
from harness.quantization.shaped_activations import BiasedStepQuantizer, ClampedQuantizer, CompandingActivation

IMAGES = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def network(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


POINTS: dict[str, Any] = {
    "w2": (2, {}),
    "w4": ("w4", {}),
    "channels": (3, {"quantizer": {"granularity": "channel"}}),
    "norms": (4, {"quantizer": {"norms": "quantized"}}),
    "excluded": (4, {"exclude": "0"}),
    "activations": ("w4a8", {"calibration": [IMAGES]}),
    "rows": ("w4a4", {"activations": {"granularity": "token", "range": "max"}}),
    "layers": ({"0": "float", "*": 4, "8": 8}, {}),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_loaded_network_is_the_deployed_one(name: str, tmp_path: Path) -> None:
    bits, options = POINTS[name]
    model, path = network(), tmp_path / "net.safetensors"
    before = deepcopy(model.state_dict())
    exported = harness.export(model, bits, path, **options)
    loaded = harness.load_packed(path, network())
    assert torch.equal(loaded(IMAGES), exported.model(IMAGES))
    assert not torch.equal(loaded(IMAGES), model(IMAGES))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    weights = {name: value for name, value in exported.model.state_dict().items() if name.endswith("weight")}
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())


def test_sizes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 11))
    exported = harness.export(model, {"0": 3, "2": 8}, tmp_path / "net.safetensors")
    assert exported.code_bytes == 6400 * 3 // 8 + 1100
    assert exported.float_bytes == 4 * (6400 + 100 + 1100 + 11)
    assert exported.code_bytes + 4 * 111 < exported.size < exported.code_bytes + 4 * 111 + 2048


def quantizers() -> dict[str, ActivationQuantizer]:
    seen = Observed.of(IMAGES)
    biased = BiasedStepQuantizer(4, (2, 1, 1)).fit(seen)
    with torch.no_grad():
        biased.before.fill_(0.1)
        biased.after.fill_(-0.2)
    return {
        "static": StaticQuantizer(4).fit(seen),
        "moving": MovingRangeQuantizer(8).fit(seen),
        "learned": LearnedStepQuantizer(4).fit(seen),
        "biased": biased,
        "shifted": biased.recalibrated(StaticQuantizer(4).fit(seen)),
        "clamped": ClampedQuantizer(4).fit(seen),
        "companding": CompandingActivation(4).fit(seen),
        "thresholds": LearnedThresholdQuantizer(4).fit(seen),
        "rows": TokenQuantizer(4, "sample"),
    }


@pytest.mark.parametrize("name", quantizers())
def test_quantizers_of_activations_come_back(name: str) -> None:
    one = quantizers()[name].eval()
    plain = plain_input(one)
    assert plain is not None
    again = built(described(plain), plain.state_dict())
    with torch.no_grad():
        assert torch.equal(again(IMAGES), one(IMAGES))
    assert isinstance(again, GridInput) == (name not in ("companding", "thresholds", "rows"))


def test_what_stays_of_biases_in_float() -> None:
    shift = quantizers()["biased"].in_float()
    plain = plain_input(shift)
    assert plain is not None
    assert torch.equal(built(described(plain), plain.state_dict())(IMAGES), shift(IMAGES))


class Rounded(ActivationQuantizer):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


def bad_files(folder: Path) -> dict[str, tuple[Any, Any, str]]:
    good, foreign, newer = folder / "good.safetensors", folder / "foreign.safetensors", folder / "newer.safetensors"
    harness.export(network(), 4, good)
    save_file({"x": torch.zeros(2)}, foreign)
    save_file({"x": torch.zeros(2)}, newer, {packed.ABOUT: '{"version": 2}'})
    (folder / "text").write_text("no tensors")
    torch.save(network().state_dict(), folder / "torch.pt")
    torch.save(network().state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    content = good.read_bytes()
    (folder / "damaged").write_bytes(content[:-1] + bytes([content[-1] ^ 16]))  # in the last tensor: a scale
    return {
        "missing": (folder / "none", None, "no such file"),
        "text": (folder / "text", None, "text: is no safetensors file, or is cut or damaged ("),
        "torch": (folder / "torch.pt", None, "is no safetensors file; it looks like a file of torch.save; load_packed"),
        "pickle": (folder / "old.pt", None, "is no safetensors file; it looks like a file of torch.save; load_packed"),
        "foreign": (foreign, None, "no packed network"),
        "newer": (newer, None, "format 2; this version of the harness reads up to 1"),
        "damaged": (folder / "damaged", network(), "damaged: its codes have the digest"),
        "folder": (folder, None, "is a folder; load_packed reads a file"),
        "no model": (good, None, "give it the network: load_packed"),
        "width": (good, network(5), "weight of layer '0' has shape (6, 2, 3, 3) in the file and (5, 2, 3, 3) in model"),
        "layers": (
            good,
            nn.Sequential(nn.Linear(4, 4)),
            "than model, which lacks the layers '3', '6', '8' (it has '0')",
        ),
        "more": (
            good,
            nn.Sequential(*network(), nn.Linear(4, 4)),
            "than model, which also has the weights '9.weight', '9.bias'",
        ),
        "order": (
            nn.Linear(4, 4),
            good,
            "load_packed(Linear, PosixPath): write load_packed(path, model): a file's path",
        ),
        "no path": (4, network(), "load_packed(int, Sequential): write"),
        "no network": (good, nn.Sequential, "load_packed(PosixPath, Sequential): write"),
    }


KINDS = (
    *("missing", "text", "torch", "pickle", "foreign", "newer", "damaged", "no model", "width", "layers", "more"),
    *("folder", "order", "no path", "no network"),
)


@pytest.mark.parametrize("name", KINDS)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    path, model, said = bad_files(tmp_path)[name]
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        harness.load_packed(path, model)
    assert str(caught.value).startswith("load_packed(" if name in KINDS[-3:] else str(path))


@pytest.mark.parametrize(
    ("bits", "options", "said"),
    [
        (9, {}, "bits: 9 is no bit-width"),
        ("float", {}, "no layer of this network has weights on a grid"),
        (4, {"format": "onxx"}, "format 'onxx'; did you mean 'onnx'"),
        (4, {"format": "onnx"}, "inputs: format onnx needs a batch of two or more"),
        ("w4a8", {}, "calibration"),
    ],
)
def test_bad_arguments_are_refused(bits: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        harness.export(network(), bits, tmp_path / "net", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "format"), [("a.onnx", "packed"), ("a.ONNX", "packed"), ("a.safetensors", "onnx")])
def test_a_format_that_contradicts_the_suffix_is_refused(name: str, format: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^format '{format}': '{name}' ends as files of format"):
        harness.export(network(), 4, tmp_path / name, format, IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.safetensors", "a.onnx"])
def test_the_folder_is_made(name: str, tmp_path: Path) -> None:
    if name == "a.onnx":
        pytest.importorskip("onnxruntime")
    assert harness.export(network(), 4, tmp_path / "no/such" / name, inputs=IMAGES).path.is_file()
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"the folder .*file cannot be made: "):
        harness.export(network(), 4, tmp_path / "file" / name, inputs=IMAGES)
    with pytest.raises(UserError, match="folder: is a folder; name a file in it"):
        harness.export(network(), 4, tmp_path / "folder")


def test_the_suffix_decides_where_no_format_is_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inputs: format onnx needs a batch"):
        harness.export(network(), 4, tmp_path / "a.onnx")
    pytest.importorskip("onnxruntime")
    harness.export(network(), 4, tmp_path / "a.onnx", inputs=IMAGES)
    runner = onnx_file.Runner(tmp_path / "a.onnx")
    assert runner(IMAGES).shape == (6, 4)
    assert "onnxruntime runs it" in runner.session.get_modelmeta().custom_metadata_map["content"]
    with pytest.raises(UserError, match=r"a\.onnx: is an ONNX file: onnxruntime runs it"):
        harness.load_packed(tmp_path / "a.onnx", network())
    for name in ("a.safetensors", "a"):
        harness.export(network(), 4, tmp_path / name)
        harness.load_packed(tmp_path / name, network())


def test_a_quantizer_without_a_form_is_refused(tmp_path: Path) -> None:
    model = harness.round_to_nearest(network(), "w4a8", calibration=[IMAGES])
    model[6].input_quantizer = Rounded(8)
    with pytest.raises(UserError, match=r"6\.input_quantizer: Rounded has no form in a file"):
        taken(model, {"6": 4})
