"""Initial weights: files, published weights, and errors that name what does not fit."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.core import registry
from harness.core.errors import UserError
from harness.models import build_model, load_checkpoint

CIFAR = (3, 32, 32)


def build(
    name: str, seed: int = 0, shape: tuple[int, int, int] = CIFAR, classes: int = 4, **settings: Any
) -> nn.Module:
    return build_model(registry.load("model", name).Config(name=name, **settings), shape, classes, seed)


def small(seed: int = 0, **settings: Any) -> nn.Module:
    return build("mlp5", seed, (1, 8, 8), width=6, **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def nested(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"model": {f"_orig_mod.{key}": value for key, value in state.items()}, "epoch": 3}, path)


@pytest.mark.parametrize(
    ("file", "save"),
    [
        ("w.safetensors", save_file),
        ("w.pt", torch.save),
        ("w.pth", torch.save),
        ("n.pt", nested),
        ("model_best.pth.tar", nested),
    ],
)
@pytest.mark.parametrize("prefix", ["checkpoint:", ""])
def test_round_trip(tmp_path: Path, file: str, save: Callable[..., None], prefix: str) -> None:
    saved = small(seed=1)
    save(saved.state_dict(), tmp_path / file)
    loaded = small(seed=2, init=f"{prefix}{tmp_path / file}")
    assert same(loaded, saved)
    assert not same(loaded, small(seed=2))


def test_slots_of_a_quantized_run_are_passed_over(tmp_path: Path) -> None:
    saved = small(seed=1)
    slots = {"layer1.weight_quantizer.learned_step": torch.ones(()), "layer1.weight_transform.alpha": torch.ones(3)}
    save_file(saved.state_dict() | slots, tmp_path / "best.safetensors")
    assert same(small(init=str(tmp_path / "best.safetensors")), saved)


def test_slots_that_the_model_has_are_loaded(tmp_path: Path) -> None:
    class Step(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.learned_step = nn.Parameter(torch.tensor(value))

    saved, model = small(seed=1), small()
    saved.get_submodule("layer1").weight_quantizer = Step(0.5)
    model.get_submodule("layer1").weight_quantizer = Step(2.0)
    save_file(saved.state_dict(), tmp_path / "best.safetensors")
    load_checkpoint(model, tmp_path / "best.safetensors")
    assert same(model, saved)


def _without_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != "layer2.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_bias, r"1 missing \(layer2\.bias\)"),
        (lambda state: state | {"extra.weight": torch.ones(1)}, r"1 unknown \(extra\.weight\)"),
        # a head for other classes is a mistake here, unlike for published weights
        (
            lambda state: state | {"layer5.weight": torch.ones(7, 6)},
            r"1 mis-shaped \(layer5\.weight \(7, 6\), the model has \(4, 6\)\)",
        ),
        (lambda state: {}, r"10 missing \(layer1\.weight, .*layer3\.weight, and 5 more\)"),
        (lambda state: {"layer1": 3}, "holds no state dict"),
        (lambda state: [1], "holds no state dict"),
    ],
)
def test_mismatches_are_named(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    torch.save(change(small().state_dict()), tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        small(init=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_unreadable_files(tmp_path: Path, file: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        small(init=str(tmp_path / file))
    (tmp_path / file).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=f"{file} cannot be read: "):
        small(init=str(tmp_path / file))
    torch.save({}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors cannot be read: it .*looks like a file of torch\.save"):
        small(init=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {}, "args": argparse.Namespace(lr=1)}, "it holds argparse.Namespace, and only tensors"),
        (nn.Linear(1, 1), "it holds torch.nn.modules.linear.Linear, and only tensors"),
        ({"best": np.float64(1)}, "it holds numpy"),
        (b"<!DOCTYPE html>", "it is no file of torch.save"),
        (b"", "it is empty or cut"),
        (b"PK\x03\x04 cut", "PytorchStreamReader failed reading zip archive"),
    ],
)
def test_reasons_are_short_and_plain(tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "w.pth.tar"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError) as refused:
        small(init=str(path))
    message = str(refused.value)
    assert f"cannot be read: {reason}" in message
    assert message.isprintable()
    assert "weights_only" not in message
    assert len(message) < len(str(path)) + 250


@pytest.mark.parametrize("name", ["mlp5", "resnet18", "timm:test_vit", "timm:test_efficientnet"])
def test_a_new_head_for_other_classes(name: str, tmp_path: Path) -> None:
    settings = {"width": 6} if name == "mlp5" else {"width": 4} if name == "resnet18" else {}
    saved = build(name, 1, classes=7, **settings).state_dict()
    torch.save(saved, tmp_path / "w.pth")
    init = str(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"2 mis-shaped .*; head: new initialises the classifier anew"):
        build(name, 2, init=init, **settings)
    own = build(name, 2, **settings).state_dict()
    loaded = build(name, 2, init=init, head="new", **settings).state_dict()
    new = [key for key, value in loaded.items() if torch.equal(value, own[key]) and not torch.equal(value, saved[key])]
    assert len(new) == 2
    assert all(loaded[key].shape[0] == 4 for key in new)
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items() if key not in new)


def test_a_new_head_for_the_same_classes_and_without_one_in_the_file(tmp_path: Path) -> None:
    saved = small(seed=1).state_dict()
    for state in (saved, {key: value for key, value in saved.items() if "layer5" not in key}):
        torch.save(state, tmp_path / "w.pt")
        loaded = small(seed=2, init=str(tmp_path / "w.pt"), head="new").state_dict()
        assert torch.equal(loaded["layer5.weight"], small(seed=2).state_dict()["layer5.weight"])
        assert torch.equal(loaded["layer4.weight"], saved["layer4.weight"])


@pytest.mark.parametrize("init", ["scratch", "pretrained"])
def test_a_new_head_is_for_checkpoints(init: str) -> None:
    with pytest.raises(ValidationError, match="head: new is for init: checkpoint"):
        build("resnet18", init=init, head="new", small_stem=False)


def test_a_head_that_is_kept_names_no_run() -> None:
    config = registry.load("model", "mlp5").Config
    assert "head" not in config(name="mlp5").identity()
    assert config(name="mlp5", init="w.pth.tar", head="new").identity()["head"] == "new"


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "w.pt")  # a whole module: needs code to load
    with pytest.raises(UserError, match="cannot be read"):
        small(init=str(tmp_path / "w.pt"))


def _no_network(*args: object, **kwargs: object) -> NoReturn:
    raise URLError("no network in tests")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", "tiny_vit", "timm:test_vit"])
def test_pretrained_without_network(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The requests are stubbed: a machine with a network would download, and one without waits for its DNS."""
    import socket

    import huggingface_hub.constants as hub
    import torchvision.models._api as api

    monkeypatch.setattr(api, "load_state_dict_from_url", _no_network)
    monkeypatch.setattr("harness.core.hub.urlopen", _no_network)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    settings = {"small_stem": False} if name == "resnet18" else {}
    start = time.monotonic()
    with pytest.raises(UserError, match=r"could not be downloaded.*init: checkpoint:<path>"):
        build(name, init="pretrained", **settings)
    # the hub's own retries last 47 s; the bound leaves room for a busy machine
    assert time.monotonic() - start < 15
    assert not hub.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("classes", [4, 1000])
def test_resnet18_pretrained(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    torch.manual_seed(0)
    published = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: published)
    state = build("resnet18", classes=classes, init="pretrained", small_stem=False).state_dict()
    own = build("resnet18", classes=classes, small_stem=False).state_dict()
    for key, value in state.items():
        head = key.startswith("fc.") and classes != 1000
        assert torch.equal(value, own[key] if head else published[key]), key


def _publish(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, Tensor]:
    """Weights that timm takes for the downloaded ones; nothing is asked of the network."""
    import timm
    from timm.models import _builder

    torch.manual_seed(0)
    state = timm.create_model(name, num_classes=1000).state_dict()
    state = {key: torch.randn_like(value) if key.endswith("biases") else value for key, value in state.items()}
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *args, **kwargs: dict(state))
    monkeypatch.setattr("harness.core.hub._reachable", lambda url: True)
    return state


def test_tiny_vit_pretrained_keeps_the_bias_of_each_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    published = _publish(monkeypatch, "tiny_vit_5m_224")
    model = build("tiny_vit", init="pretrained")
    for key, value in model.state_dict().items():
        if not key.endswith("attention_biases") and not key.startswith("head.fc"):
            assert torch.equal(value, published[key]), key
    attention: Any = model.get_submodule("stages.2.blocks.0.attn")
    original = published["stages.2.blocks.0.attn.attention_biases"]
    window = attention.resolution[0]
    assert window == 4
    biases = attention.attention_biases[:, attention.attention_bias_idxs]  # (heads, 16, 16)
    for one in range(window**2):
        for two in range(window**2):
            down, right = abs(one // window - two // window), abs(one % window - two % window)
            assert torch.equal(biases[:, one, two], original[:, down * 14 + right])


def test_vit_tiny_pretrained_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    published = _publish(monkeypatch, "vit_tiny_patch16_224")
    state = build("vit_tiny", init="pretrained").state_dict()
    assert torch.equal(state["blocks.3.attn.qkv.weight"], published["blocks.3.attn.qkv.weight"])
    assert state["pos_embed"].shape == (1, 65, 192)
    assert not torch.equal(state["pos_embed"], build("vit_tiny").state_dict()["pos_embed"])
    assert state["patch_embed.proj.weight"].shape == (192, 3, 4, 4)


def test_a_server_that_answers_with_an_error_is_reachable() -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from harness.core.hub import _reachable

    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # answers 501 to everything
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        assert _reachable(f"http://127.0.0.1:{server.server_port}/")
    finally:
        thread.join(5)
        server.server_close()
    assert not _reachable(f"http://127.0.0.1:{server.server_port}/")
