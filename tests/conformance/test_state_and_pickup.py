"""More that every method must do: the whole state after a resume, one order of batches, grids per channel.

And the suite itself: it finds a method that somebody drops into the folder.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conformance_common import each_once
from pages import METHOD

import harness
from harness.conformance import deploying, training
from harness.conformance.common import SMALLER, Case, fitting
from harness.core import registry
from harness.core.errors import UserError
from harness.methods import find
from harness.training.build import build

METHODS = registry.names("method")
#: Deploy methods of points with a decoder's keys and values have tests of their own.
DEPLOYING = [name for name in registry.deploy_methods()[1:] if "keys and values" not in find(name).acts_on]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.slow  # that a resumed run has the same record and weights is tested by default, and on every model
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("method", "model"), each_once(METHODS, SMALLER))
def test_the_whole_state_after_a_resume(method: str, model: str, device: str, tmp_path: Path) -> None:
    training.the_whole_state_is_resumed(Case(method, model, device, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("deploy", DEPLOYING)
def test_a_resume_where_epochs_are_measured_after_a_deploy_method(deploy: str, tmp_path: Path) -> None:
    deploying.a_resume_where_epochs_are_measured_after_it(Case(deploy, folder=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "model"), each_once(METHODS, SMALLER))
def test_the_same_batches_as_float_training(method: str, model: str) -> None:
    training.it_gets_the_batches_of_float_training(Case(method, model))


@pytest.mark.parametrize("quantizer", [{"granularity": "channel"}, {"range": "mse"}])
@pytest.mark.parametrize("method", METHODS)
def test_every_group_that_shares_a_step_is_on_a_grid(method: str, quantizer: dict[str, str]) -> None:
    deploying.every_group_that_shares_a_step_is_on_a_grid(Case(method), quantizer)


@pytest.mark.parametrize("method", METHODS)
def test_a_float_deployment_is_what_training_had_but_for_rounding(method: str) -> None:
    deploying.a_float_deployment_is_what_training_had_but_for_rounding(Case(method))


@pytest.mark.parametrize("model", SMALLER)
@pytest.mark.parametrize("method", [name for name in METHODS if find(name).requires])
def test_a_model_without_what_it_requires_is_refused(method: str, model: str) -> None:
    if model in fitting(method, SMALLER):
        build(Case(method, model).scheduled())
        return
    with pytest.raises(UserError, match=f"method '{method}' needs .*, and model '{model}' has none"):
        build(Case(method, model).scheduled())


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
    (methods / "weight_noise.py").write_text(METHOD)  # as a page shows it
    # a step counter that no checkpoint holds
    unruly = NEW_METHOD.replace("dropped_in", "dropped_bad").replace("+ step.index", "+ self.calls()")
    unruly += "\n    def calls(self):\n        self.n = getattr(self, 'n', 0) + 1\n        return self.n\n"
    (methods / "dropped_bad.py").write_text(unruly)
    wanted = "(dropped and not vit_tiny or weight_noise) and not cuda"
    selection = ["-k", wanted, "-p", "no:cacheprovider", "-q", "-rpf"]
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
    assert any("test_resumed_equals_uninterrupted_bit_for_bit[dropped_bad" in line for line in failed), suite.stdout
    assert not any(name in line for name in ("dropped_in", "weight_noise") for line in failed), suite.stdout
    passed = [line for line in suite.stdout.splitlines() if line.startswith("PASSED")]
    for name in ("dropped_in", "weight_noise"):
        assert sum(name in line for line in passed) >= 8, suite.stdout
    assert all("resume" in line for line in failed), suite.stdout
    assert int(suite.stdout.rpartition(" passed")[0].rpartition(" ")[2]) > 20, suite.stdout
