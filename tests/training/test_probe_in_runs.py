"""The probe within a run: what is refused before training, and what the record says of the rest."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.core.errors import UserError
from harness.quantization.audit import EXCLUDED, FLOAT, QUANTIZED, UNUSED, Audit
from harness.training import build as building
from harness.training.config import RunConfig, complete
from harness.training.run import run


class Net(nn.Module):
    """Digits to logits. reads: the hidden layer's weight is read past it. own: so is a parameter of the network."""

    def __init__(self, reads: bool = False, own: bool = False) -> None:
        super().__init__()
        self.reads = reads
        self.hidden, self.head, self.spare = nn.Linear(64, 10), nn.Linear(10, 10), nn.Linear(2, 2)
        self.own = nn.Parameter(torch.eye(10)) if own else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = functional.linear(x, self.hidden.weight) if self.reads else self.hidden(x)
        return self.head(x if self.own is None else x @ self.own)


def config(method: str, **changes: Any) -> RunConfig:
    return complete(
        {
            "methods": method,
            **({"watch_bit": 3} if method == "none" else {"target_bit": 3}),
            "model": {"name": "mlp5"},
            "data": {"name": "digits", "train_fraction": 0.1},
            "train": {"epochs": 1, "batch_size": 60},
            "deploy": {"bits": [3], "scale": "recalibrate"},
            "runtime": {"device": "cpu", "wandb": "off"},
            **changes,
        }
    )


def use(monkeypatch: pytest.MonkeyPatch, net: nn.Module) -> None:
    monkeypatch.setattr(building, "build_model", lambda *args: net)


@pytest.mark.parametrize("method", ["none", "ste", "oscillation"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reads": True}, "layer 'hidden': the network reads the weight without calling the layer"),
        ({"own": True}, "layer 'own': the network multiplies by a weight of its own"),
        ({"reads": True, "own": True}, "layer 'hidden': .*; layer 'own': "),
    ],
)
def test_a_run_of_weights_that_no_quantizer_reaches_is_refused(
    method: str, settings: dict[str, bool], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Net(**settings))
    with pytest.raises(UserError, match=said):
        run(config(method), tmp_path)


def test_the_record_says_what_became_of_the_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Net(reads=True, own=True))
    with pytest.warns(UserWarning, match="never uses these parameters.*: 'spare.weight', 'spare.bias'"):
        record = run(config("ste", exclude=["hidden", "own"]), tmp_path)
    unused = ["spare.weight", "spare.bias"]
    assert record["audit"] == {
        QUANTIZED: 1,
        FLOAT: 1,
        EXCLUDED: ["own", "hidden.weight", "hidden.bias"],
        UNUSED: unused,
    }


def test_a_run_that_draws_random_numbers_in_its_forward_pass_is_the_same_without_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2, "drop_path": 0.5}
    before = torch.get_rng_state()
    record = run(config("ste", model=drawing), tmp_path / "with")
    torch.set_rng_state(before)
    monkeypatch.setattr(building, "_audit", lambda *args: Audit({}))
    assert run(config("ste", model=drawing), tmp_path / "without")["rows"] == record["rows"]
    metrics = [(tmp_path / each / "metrics.jsonl").read_text() for each in ("with", "without")]
    assert metrics[0] == metrics[1]
