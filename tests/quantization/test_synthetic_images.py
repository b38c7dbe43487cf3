"""Images from batch norm statistics: they have these statistics, and the same seed gives the same images."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from harness.quantization.synthetic_images import batch_norms, synthetic_images


def network() -> nn.Sequential:
    """Batch norms whose statistics are those of correlated images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))
    for _ in range(40):
        noise = torch.randn(32, 3, 9, 9)
        model(2 * (noise[..., :-1, :-1] + noise[..., 1:, 1:]) / 2 + 0.3)
    return model.eval().requires_grad_(False)


def off(model: nn.Module, images: Tensor) -> float:
    """How far what comes to batch norms is from their statistics, over that of the noise that images start from."""
    found: list[float] = []

    def note(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        places = inputs[0].flatten(2)
        found.append(float((places.mean(2) - norm.running_mean).square().sum(1).mean()))
        found.append(float((places.std(2) - norm.running_var.sqrt()).square().sum(1).mean()))  # type: ignore[union-attr]

    hooks = [norm.register_forward_pre_hook(note) for norm in batch_norms(model)]  # type: ignore[arg-type]
    model(images)
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_images_have_the_statistics_of_the_norms() -> None:
    model = network()
    before = deepcopy(model.state_dict())
    start, found = (synthetic_images(model, (3, 8, 8), 16, steps, seed=4) for steps in (0, 60))
    assert found.shape == (16, 3, 8, 8)
    assert off(model, found) < 0.2 * off(model, start)
    assert float(start.std()) == pytest.approx(1, abs=0.05), "the intended start, not the released code's 0.014"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.rand(3)
    assert torch.equal(found, synthetic_images(model, (3, 8, 8), 16, 60, seed=4))
    assert not torch.equal(start, synthetic_images(model, (3, 8, 8), 16, 0, seed=5))
