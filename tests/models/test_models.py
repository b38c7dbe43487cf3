"""Every model: shapes, parameter counts, seeds, image sizes, and what is refused."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness.core import registry
from harness.core.errors import UserError
from harness.models import ModelConfig, TaskModelConfig, build_model, resized_shape

DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CASES: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    ({"name": "mlp5"}, DIGITS),
    ({"name": "mlp5", "hidden": [256, 128]}, CIFAR),
    ({"name": "resnet18", "width": 16}, DIGITS),
    ({"name": "resnet18", "width": 16, "small_stem": False}, (3, 32, 48)),
    ({"name": "vit_tiny", "depth": 2}, DIGITS),
    ({"name": "vit_tiny", "depth": 2, "drop_path": 0.1}, CIFAR),
    ({"name": "tiny_vit"}, DIGITS),
    ({"name": "timm:test_vit"}, CIFAR),
    ({"name": "timm:test_resnet", "dropout": 0.1}, CIFAR),
]


def config(name: str, **settings: Any) -> ModelConfig:
    made: ModelConfig = registry.load("model", name).Config(name=name, **settings)
    return made


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("settings", "shape"), CASES, ids=lambda case: case["name"] if isinstance(case, dict) else "")
def test_forward_backward_and_seed(settings: dict[str, Any], shape: tuple[int, int, int], device: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = build_model(config(**settings), shape, 5, seed=3)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state moved"
    torch.rand(11)
    assert same(model, build_model(config(**settings), shape, 5, seed=3))
    assert not same(model, build_model(config(**settings), shape, 5, seed=4))
    model.to(device)
    assert model.training
    logits = model(torch.rand(2, *shape, device=device))
    assert logits.shape == (2, 5)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1], device=device)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize(
    ("settings", "shape", "expected"),
    [
        # 3072*256 + 256 + 3*(256*256 + 256) + 256*10 + 10
        ({"name": "mlp5"}, CIFAR, 986_634),
        ({"name": "mlp5", "hidden": [256, 128]}, CIFAR, 3072 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        ({"name": "mlp5", "depth": 1}, DIGITS, 650),
        # torchvision's 11,689,512 - (1000-10)*513 of the classifier - 9408 + 1728 of the stem
        ({"name": "resnet18"}, CIFAR, 11_173_962),
        ({"name": "resnet18", "small_stem": False}, CIFAR, 11_181_642),
        # timm's ViT-Tiny at 64 patches of 1 grey pixel
        ({"name": "vit_tiny"}, DIGITS, 5_353_738),
        # 16 patches of 4 pixels: 3 more weights a feature, 48 positions less
        ({"name": "vit_tiny", "patch": 2}, DIGITS, 5_353_738 + 192 * 3 - 192 * 48),
        # timm's 5,074,974 less the biases (2*4*(49-16) + 6*5*(196-16) + 2*10*(49-4)) of the offsets cut away
        ({"name": "tiny_vit"}, CIFAR, 5_074_974 - 264 - 5400 - 900),
    ],
)
def test_parameter_counts(settings: dict[str, Any], shape: tuple[int, int, int], expected: int) -> None:
    assert parameters(build_model(config(**settings), shape, 10, seed=0)) == expected


def test_mlp5_layers() -> None:
    model = build_model(config("mlp5", hidden=[256, 128]), CIFAR, 10, seed=0)
    linear = [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)]
    assert linear == [(3072, 256), (256, 128), (128, 10)]
    assert [name for name, _ in model.named_children()] == ["flatten", "layer1", "relu1", "layer2", "relu2", "layer3"]


def test_resnet18_has_torchvisions_state_dict() -> None:
    from torchvision.models import resnet18

    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in model.state_dict().items()}

    expected = shapes(resnet18())
    assert shapes(build_model(config("resnet18", small_stem=False), CIFAR, 1000, seed=0)) == expected
    assert list(shapes(build_model(config("resnet18", width=16), CIFAR, 10, seed=0))) == list(expected)
    small = shapes(build_model(config("resnet18"), CIFAR, 1000, seed=0))
    assert {key for key in expected if small[key] != expected[key]} == {"conv1.weight"}


def test_resnet18_initialisation_is_torchvisions() -> None:
    model = build_model(config("resnet18", width=32), CIFAR, 10, seed=0)
    weight = model.get_submodule("layer3.0.conv2").weight
    # kaiming, fan_out: std = sqrt(2 / (9 * 128)); 147,456 samples put the estimate within 1 %
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("side", "expected"), [(224, (7, 14, 7)), (64, (4, 4, 2)), (96, (6, 6, 3)), (512, (7, 11, 6))])
def test_tiny_vit_windows(side: int, expected: tuple[int, ...]) -> None:
    from harness.models.tiny_vit import windows

    assert windows(side)[1:] == expected  # the first stage is convolutional


def test_small_images_are_resized_in_the_forward() -> None:
    model = build_model(config("tiny_vit"), DIGITS, 10, seed=0).eval()
    large = build_model(config("tiny_vit"), (1, 64, 64), 10, seed=0).eval()
    assert same(model, large), "resizing changed the state dict"
    images = torch.rand(2, *DIGITS)
    resized = nn.functional.interpolate(images, (64, 64), mode="bilinear", align_corners=False, antialias=True)
    expected = large(resized)
    assert torch.equal(model(images), expected)
    # after a pass with gradients, where timm's cache of biases would refuse the copy
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(images), expected)


def test_image_side_resizes_and_keeps_the_aspect() -> None:
    assert resized_shape(config("tiny_vit"), (3, 32, 48)) == (3, 64, 96)
    assert resized_shape(config("tiny_vit"), (3, 96, 96)) == (3, 96, 96)
    assert resized_shape(config("mlp5", image_side=16), (3, 32, 32)) == (3, 16, 16)
    model = build_model(config("mlp5", image_side=4), DIGITS, 10, seed=0)
    assert model.get_submodule("layer1").in_features == 16
    assert model(torch.rand(2, *DIGITS)).shape == (2, 10)


@pytest.mark.parametrize("name", ["tiny_vit", "timm:tiny_vit_5m_224"])
def test_attention_biases_are_never_stale(name: str) -> None:
    model = build_model(config(name, image_side=64), CIFAR, 10, seed=0).eval()
    images = torch.rand(1, *CIFAR)
    with torch.no_grad():
        before = model(images)
        for key, parameter in model.named_parameters():
            if key.endswith("attention_biases"):
                parameter.normal_()
        assert not torch.equal(model(images), before)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"name": "resnet18", "init": "pretrained"}, CIFAR, r"small_stem=False \(not True\)"),
        ({"name": "resnet18", "init": "pretrained", "small_stem": False, "width": 16}, CIFAR, r"width=64 \(not 16\)"),
        ({"name": "resnet18", "init": "pretrained", "small_stem": False}, DIGITS, "3 image channels, not 1"),
        ({"name": "vit_tiny"}, (3, 28, 28), "side 28 is not a multiple of the patch 3"),
        ({"name": "vit_tiny"}, (3, 32, 48), "square images, not 32x48"),
        ({"name": "vit_tiny", "patch": 5}, CIFAR, "side 32 is not a multiple of the patch 5"),
        ({"name": "vit_tiny", "init": "pretrained", "depth": 3}, CIFAR, r"depth=12 \(not 3\)"),
        ({"name": "tiny_vit"}, (3, 64, 96), "square"),
        ({"name": "tiny_vit", "image_side": 32}, CIFAR, "64 pixels or more, not 32x32"),
        ({"name": "timm:vit_tiny_patch16_224"}, DIGITS, "1x8x8 images.*image_side"),
        ({"name": "timm:vgg11", "drop_path": 0.1}, CIFAR, "cannot be built .*drop_path_rate"),
        ({"name": "timm:botnet50ts_256", "init": "pretrained"}, CIFAR, "has no pretrained weights"),
    ],
)
def test_refusals(settings: dict[str, Any], shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(config(**settings), shape, 10, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mlp5", "init": "pretraind"}, "did you mean 'pretrained'"),
        ({"name": "mlp5", "init": "checkpoint:weights.bin"}, "path ending in .safetensors"),
        ({"name": "mlp5", "init": "checkpoint:"}, "path ending in .safetensors"),
        ({"name": "mlp5", "width": 0}, "greater than or equal to 1"),
        ({"name": "mlp5", "hidden": [0]}, "greater than or equal to 1"),
        ({"name": "mlp5", "heigth": 3}, "heigth"),
        ({"name": "vit_tiny", "heads": 5}, "heads 5 do not divide width 192"),
        ({"name": "tiny_vit", "embed_dims": [64, 100, 160, 320]}, "multiples of 32"),
        ({"name": "timm:resnt34"}, "unknown timm model 'resnt34'; did you mean 'resnet34'"),
        ({"name": "timm:vit_tiny_patch16_224.augreg_in21"}, "did you mean 'vit_tiny_patch16_224.augreg_in21k'"),
        ({"name": "timm"}, "timm:<name>"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)


@pytest.mark.parametrize("init", ["checkpoint:a/b.safetensors", "a/b.safetensors", "checkpoint:b.pt", "b.pth"])
def test_init_forms(init: str) -> None:
    assert config("mlp5", init=init).checkpoint == Path(init.removeprefix("checkpoint:"))
    assert config("mlp5").checkpoint is None


def test_mlp5_imports_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys; from harness.models import build_model; from harness.models.mlp5 import Config;"
        "import harness.models.resnet18, harness.models.vit_tiny, harness.models.tiny_vit, harness.models.timm;"
        "import harness.quantization.attention; build_model(Config(), (1, 8, 8), 10, 0);"
        "sys.exit(', '.join({'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_are_checked_without_torch() -> None:
    code = (
        "import sys; from harness.core import registry;"
        "[registry.load('model', name) for name in registry.names('model')]; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_model_file_describes_its_settings() -> None:
    for name in registry.names("model"):
        module = registry.load("model", name)
        assert issubclass(module.Config, TaskModelConfig)
        assert set(module.Config.tasks) <= set(registry.names("task"))
        undescribed = [
            key for key, field in module.Config.model_fields.items() if key != "name" and not field.description
        ]
        assert not undescribed, name


def test_images_larger_than_the_minimum_pass_unchanged() -> None:
    model = build_model(config("mlp5"), DIGITS, 10, seed=0)
    assert not model._forward_pre_hooks
    images: Tensor = torch.rand(2, *DIGITS)
    assert torch.equal(model(images), nn.Sequential(*model)(images))
