"""More that every method must do: the whole state after a resume, one order of batches, grids per channel.

And the suite itself: it finds a method that somebody drops into the folder.
"""

import itertools
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance_common import fitting, groups, pairs, point_of_layer
from torch import Tensor

import harness
from harness.core import registry
from harness.core.bits import BitWidths
from harness.core.errors import Stopped, UserError
from harness.data.base import Dataset
from harness.methods import find
from harness.methods.base import Method
from harness.quantization.layers import weight_layers
from harness.training import checkpoint
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import train

METHODS = registry.names("method")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MODELS: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 12, "depth": 3},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2, "drop_path": 0.4},
}
#: With statistics that a deploy method can change; too slow for every test.
BATCH_NORMS: dict[str, dict[str, Any]] = {"resnet18": {"name": "resnet18", "width": 2}}


def config(method: str, device: str = "cpu", model: str | None = None, **changes: Any) -> RunConfig:
    """Two epochs of three steps on digits; model: the first that the method fits, unless named."""
    raw: dict[str, Any] = {
        "methods": [find(method).tiny_config().model_dump()],
        "target_bit": 3,
        "model": (MODELS | BATCH_NORMS)[model or fitting(method, MODELS)[0]],
        "data": {"name": "digits", "train_fraction": 0.1, "augment": {"crop_padding": 1}},
        "train": {"epochs": 2, "batch_size": 40, "learning_rate": 3e-3, "schedule": "cosine", "warmup_epochs": 1},
        "deploy": {"bits": [2, 3, 8], "scale": "keep_range"},
        "runtime": {"device": device, "deterministic": device == "cuda", "wandb": "off"},
    }
    return complete(raw | changes)


def assert_equal(left: Any, right: Any, place: str = "") -> None:
    """To the last bit; raises with the place of the first difference."""
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype, place
        assert torch.equal(left, right), place
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_equal(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list | tuple):
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, place=f"{place}[{index}]")
    else:
        assert left == right, place


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("method", "model"), pairs(METHODS, MODELS))
def test_the_whole_state_after_a_resume(method: str, model: str, device: str, tmp_path: Path) -> None:
    """Model, optimizer, tracker, method, progress and random numbers, as a checkpoint holds them."""
    states, lines = {}, {}
    for name, stops in (("whole", [99]), ("parts", [1, 2, 1, 99])):
        lines[name] = []
        for allowed in stops:
            session = build(config(method, device, model))
            checkpoint.restore(tmp_path / f"{name}.pt", session)
            left = itertools.chain([False] * allowed, itertools.repeat(True))
            with suppress(Stopped):
                train(session, lines[name].append, lambda left=left: next(left))  # type: ignore[misc]
            checkpoint.save(tmp_path / f"{name}.pt", session)
        states[name] = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    assert states["whole"]["progress"]["epoch"] == 2
    assert set(states["whole"]) >= {"model", "optimizer", "methods", "trackers", "progress", "rng"}
    assert_equal(states["parts"], states["whole"])
    assert lines["parts"] == lines["whole"]


@pytest.mark.parametrize("name", METHODS)
def test_whether_a_method_deploys_is_read_off_its_file(name: str) -> None:
    assert registry.has_deploy(name) == (find(name).deploy is not Method.deploy)


@pytest.mark.slow
@pytest.mark.parametrize("deploy", registry.deploy_methods()[1:])
def test_a_resume_where_epochs_are_measured_after_a_deploy_method(deploy: str, tmp_path: Path) -> None:
    """And what is measured changes no weight."""
    served = {} if find(deploy).serves(BitWidths(3)) else {"target_bit": "w3a4"}
    chosen_by = {"monitor": {"deploy": find(deploy).tiny_config().model_dump()}}
    lines: dict[str, list[Any]] = {}
    for name, stops, changes in (("plain", [99], {}), ("whole", [99], chosen_by), ("parts", [2, 1, 99], chosen_by)):
        lines[name] = []
        for allowed in stops:
            session = build(config("ste", model="resnet18", **served, **changes))
            checkpoint.restore(tmp_path / f"{name}.pt", session)
            left = itertools.chain([False] * allowed, itertools.repeat(True))
            with suppress(Stopped):
                train(session, lines[name].append, lambda left=left: next(left))  # type: ignore[misc]
            checkpoint.save(tmp_path / f"{name}.pt", session)
    states = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in lines}
    assert_equal(states["parts"], states["whole"])
    assert lines["parts"] == lines["whole"]
    assert_equal(states["whole"]["model"], states["plain"]["model"])


@pytest.mark.parametrize(("method", "model"), pairs(METHODS, MODELS))
def test_the_same_batches_as_float_training(method: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_batch = Dataset.train_batch
    seen: dict[str, list[Tensor]] = {method: [], "none": []}
    for name in seen:

        def noted(self: Dataset, indices: Tensor, generator: Any = None, name: str = name) -> tuple[Tensor, Tensor]:
            batch = train_batch(self, indices, generator)
            if generator is not None:  # calibration has none
                seen[name].append(batch[0].clone())
            return batch

        session = build(config(name, model=model))
        monkeypatch.setattr(Dataset, "train_batch", noted)
        train(session, lambda metrics: None)
        monkeypatch.setattr(Dataset, "train_batch", train_batch)
    assert len(seen["none"]) == 6
    assert_equal(seen[method], seen["none"])


@pytest.mark.parametrize("quantizer", [{"granularity": "channel"}, {"range": "mse"}])
@pytest.mark.parametrize("method", METHODS)
def test_every_group_that_shares_a_step_is_on_a_grid(method: str, quantizer: dict[str, str]) -> None:
    deploy = {"bits": [2], "scale": "keep_step"}
    session = build(config(method, quantizer=quantizer, deploy=deploy, train={"epochs": 1}))
    train(session, lambda metrics: None)
    sources = weight_layers(session.model)
    for scale, bits in itertools.product(("keep_step", "keep_range", "recalibrate"), range(2, 9)):
        context = replace(session.evaluator.context, scale=scale)  # training knows nothing of it
        for each in session.methods:
            each.context = context
        evaluator = replace(session.evaluator, context=context)
        (found,) = evaluator.deployments(session.model, [("rtn", BitWidths(bits))])
        for name, layer in weight_layers(found.model).items():
            own = point_of_layer(found, name).weights
            assert own is not None
            own_steps = list(layer.weight) if "granularity" in quantizer else groups(sources[name], layer.weight, None)
            assert max(len(group.unique()) for group in own_steps) <= 2**own, (name, scale, bits)
            assert bool(torch.isfinite(layer.weight).all())


@pytest.mark.parametrize("method", METHODS)
def test_a_float_deployment_is_what_training_had_but_for_rounding(method: str) -> None:
    session = build(config(method))
    train(session, lambda metrics: None)
    images = session.dataset.normalized(session.dataset.val.images[:64])
    floating = session.evaluator.deployed(session.model, "float")
    target = session.evaluator.deployed(session.model, 3)
    assert not torch.equal(floating(images), target(images))
    if not any(hasattr(layer.weight_quantizer, "bits") for layer in weight_layers(session.model).values()):
        assert torch.equal(floating(images), session.model.eval()(images))
    else:
        assert torch.equal(target(images), session.model.eval()(images)), "trained through the target bit's grid"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", [name for name in METHODS if find(name).requires])
def test_a_model_without_what_it_requires_is_refused(method: str, model: str) -> None:
    if model in fitting(method, MODELS):
        build(config(method, model=model))
        return
    with pytest.raises(UserError, match=f"method '{method}' needs .*, and model '{model}' has none"):
        build(config(method, model=model))


NEW_METHOD = '''
"""A method that somebody drops into the folder: noise on the weights (nobody, 2026)."""

from typing import Literal

import torch
from pydantic import Field

from harness.methods.base import Method, MethodConfig, Step


class Dropped(Method):
    """Adds noise to gradients."""

    kind, acts_on = "noise", "gradients"

    class Config(MethodConfig):
        name: Literal["dropped_in"] = "dropped_in"
        strength: float = Field(0.1, ge=0, description="of the noise")

    def after_backward(self, step: Step) -> float:
        generator = torch.Generator().manual_seed(self.context.seed + step.index)
        for parameter in step.model.parameters():
            if self.config.strength and parameter.grad is not None:
                parameter.grad += self.config.strength * torch.randn(parameter.shape, generator=generator)
        return 0.0
'''


@pytest.mark.slow
def test_new_files_are_tested_and_one_that_breaks_the_rules_is_caught(tmp_path: Path) -> None:
    shutil.copytree(Path(harness.__file__).parent, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    methods = tmp_path / "harness/methods"
    (methods / "dropped_in.py").write_text(NEW_METHOD)
    # a step counter that no checkpoint holds
    unruly = NEW_METHOD.replace("dropped_in", "dropped_bad").replace("+ step.index", "+ self.calls()")
    unruly += "\n    def calls(self):\n        self.n = getattr(self, 'n', 0) + 1\n        return self.n\n"
    (methods / "dropped_bad.py").write_text(unruly)
    selection = ["-k", "dropped and not vit_tiny and not cuda", "-p", "no:cacheprovider", "-q"]
    here = str(Path(__file__).parent)
    suite = subprocess.run(
        [sys.executable, "-m", "pytest", *selection, "--rootdir", here, here],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert suite.returncode == 1, suite.stdout + suite.stderr
    failed = [line for line in suite.stdout.splitlines() if line.startswith("FAILED")]
    assert any("test_the_whole_state_after_a_resume[dropped_bad" in line for line in failed), suite.stdout
    assert not any("dropped_in" in line for line in failed), suite.stdout
    assert all("resume" in line for line in failed), suite.stdout
    assert int(suite.stdout.rpartition(" passed")[0].rpartition(" ")[2]) > 20, suite.stdout
