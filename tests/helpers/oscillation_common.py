"""What the tests in test_oscillation_*.py share."""

from torch import Tensor, nn

from harness import OscillationTracker


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def state(tracker: OscillationTracker) -> list[Tensor]:
    return [tensor for layer in tracker.state_dict().values() for tensor in layer.values()]
