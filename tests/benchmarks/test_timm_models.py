"""The script over timm's families: that it sees what is wrong, and that it runs."""

from collections import Counter
from collections.abc import Callable

import pytest
import timm_models
import torch
from timm_models import Result, latent_weights_unread, oscillation, ste, table
from torch import Tensor, nn
from torch.nn import functional


class Net(nn.Module):
    """Images (N, 3, 4, 4) to logits."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads, self.hidden, self.head = reads, nn.Linear(48, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = self.head(functional.linear(x, self.hidden.weight) if self.reads else self.hidden(x))
        return logits


IMAGES = torch.rand(2, 3, 4, 4)


def test_a_latent_weight_that_is_read_is_seen_without_the_probe() -> None:
    assert list(latent_weights_unread(Net(False), IMAGES, [])) == []
    assert list(latent_weights_unread(Net(True), IMAGES, [])) == ["latent weights are read: hidden"]
    assert list(latent_weights_unread(Net(True), IMAGES, ["hidden"])) == []


@pytest.mark.parametrize("check", [ste, oscillation])
def test_a_sound_network_passes(check: Callable[..., object]) -> None:
    assert list(check(Net(False), IMAGES, [])) == []  # type: ignore[call-overload]


def test_what_is_deployed_and_was_not_trained_is_seen() -> None:
    assert list(ste(Net(True), IMAGES, [])) == ["what is deployed is not what was trained"]


def test_the_table() -> None:
    results = [
        Result("a", "a_tiny", 1_000_000, 32, 3),
        Result("b", "b_tiny", 1_000_000, 32, 3, Counter({"Conv1d": 2})),
        Result("c", "c_tiny", 1_000_000, 32, 3, Counter({"Conv1d": 2}), ["the loss is not finite"]),
    ]
    text = table(results)
    assert "of 3 modules 1 are accepted, 1 refused until layers are excluded, 1 wrong." in text
    assert "| b | b_tiny | 1.0 M | 32x32 | 3 | refused | Conv1d (2) |" in text
    assert "| wrong | the loss is not finite; Conv1d (2) |" in text


@pytest.mark.slow
def test_a_few_families() -> None:
    assert timm_models.main(["beit", "byobnet", "mobilenetv3", "coat"]) == 0
