"""How a method trains: finite, resumable, from the same weights and batches as float training."""

import itertools
import json
import math
from contextlib import suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from harness.conformance.common import Case, require, require_same, result, trained
from harness.conformance.unsaved import explained
from harness.core import registry
from harness.core.errors import Stopped
from harness.data.base import Dataset
from harness.methods import find
from harness.methods.base import Method
from harness.quantization.audit import Audit
from harness.quantization.layers import QuantLayer
from harness.quantization.slots import Unfilled
from harness.records.schema import FREQUENCY, TRAIN_LOSS, TRAIN_PENALTY
from harness.training import build as building
from harness.training import checkpoint
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train
from harness.training.run import RunContext, run

#: Steps of the runs in `Case.config`.
STEPS = 6


def its_file_says_what_it_is(case: Case) -> None:
    """A docstring, `kind` and `acts_on`, and a description of each setting."""
    found = find(case.method)
    require(registry.load("method", case.method).__doc__, "its file (or class) has no docstring")
    require(
        found.kind and found.acts_on,
        "the class attributes kind and acts_on must say what it is; one is empty",
    )
    for name, field in found.Config.model_fields.items():
        require(name == "name" or field.description, f"its setting {name} has no description")
    deploys = found.deploy is not Method.deploy
    told = "define deploy in the class itself, indented by four spaces" if deploys else "not mention deploy"
    require(registry.has_deploy(case.method) == deploys, f"its file must {told}: that is how it is found without torch")


def its_configuration_goes_through_json(case: Case) -> None:
    """Settings survive being written to a record, and name the same run."""
    once = case.config()
    again = complete(json.loads(json.dumps(once.model_dump(mode="json"))))
    require(again == once, "read back from JSON, its settings are others")
    require(again.run_id() == once.run_id(), "read back from JSON, its run has another id")


def it_trains_to_finite_values(case: Case) -> None:
    """Loss, penalty, oscillation frequency and weights after two epochs."""
    lines: list[dict[str, Any]] = []
    session = build(case.config())
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    train(session, lines.append)
    require([line["epoch"] for line in lines] == [1, 2], "it must train two epochs; it did not")
    losses = [line[TRAIN_LOSS] for line in lines]
    require(all(0 < loss < 10 for loss in losses), f"loss must be above 0 and below 10; found {losses}")
    penalties = [line[TRAIN_PENALTY] for line in lines]
    require(all(map(math.isfinite, penalties)), f"its penalty must be finite; found {penalties}, means over epochs")
    require(all(0 <= line[FREQUENCY] <= 1 for line in lines), "oscillation frequency must be from 0 to 1; it is not")
    for name, parameter in session.model.named_parameters():
        require(parameter.isfinite().all(), f"parameter {name} must be finite; it is not")
    moved = [name for name, p in session.model.named_parameters() if not torch.equal(p, before[name])]
    require(moved, "no parameter has moved")


def a_resumed_run_equals_an_uninterrupted_one(case: Case) -> None:
    """Rows, metrics and weights, after stops within an epoch, at its end and within the next."""
    wanted = case.config()
    run(wanted, case.folder / "whole")
    for allowed in (2, 1, 2):
        left = iter([False] * allowed)
        torch.rand(7)  # other code may draw random numbers in between
        stopped = False
        try:
            run(wanted, case.folder / "parts", RunContext(should_stop=partial(next, left, True)))
        except Stopped:
            stopped = True
        require(stopped, "it must stop when asked to; it went on")
        status = json.loads((case.folder / "parts/status.json").read_text())
        require(status["state"] == "cancelled", f"a stopped run must be cancelled; it is {status['state']}")
    run(wanted, case.folder / "parts")
    require(json.loads((case.folder / "parts/status.json").read_text())["attempt"] == 4, "the fourth attempt")
    with explained(wanted, case.folder):
        require_same(result(case.folder / "parts"), result(case.folder / "whole"), "resumed and uninterrupted: result")


def the_whole_state_is_resumed(case: Case) -> None:
    """Model, optimizer, tracker, method, progress and random numbers, as a checkpoint holds them."""
    states: dict[str, Any] = {}
    lines: dict[str, list[Any]] = {}
    for name, stops in (("whole", [99]), ("parts", [1, 2, 1, 99])):
        lines[name] = []
        for allowed in stops:
            session = build(case.scheduled())
            checkpoint.restore(case.folder / f"{name}.pt", session)
            left = itertools.chain([False] * allowed, itertools.repeat(True))
            with suppress(Stopped):
                train(session, lines[name].append, partial(next, left))
            checkpoint.save(case.folder / f"{name}.pt", session)
        states[name] = torch.load(case.folder / f"{name}.pt", weights_only=True)
    require(states["whole"]["progress"]["epoch"] == 2, "it must train two epochs; it did not")
    parts = {"model", "optimizer", "methods", "trackers", "progress", "rng"}
    require(set(states["whole"]) >= parts, f"a checkpoint holds {', '.join(sorted(parts))}")
    with explained(case.scheduled(), case.folder):
        require_same(states["parts"], states["whole"], "after a resume: state")
        require(repr(lines["parts"]) == repr(lines["whole"]), "after a resume, epochs have other metrics")


def the_probe_of_the_network_changes_no_number(case: Case) -> None:
    """Looking at the network before a run uses up no random number that training needs."""
    raw = case.config().model_dump(mode="json")
    short = complete({**raw, "train": {**raw["train"], "epochs": 1}, "deploy": {**raw["deploy"], "bits": [3]}})
    run(short, case.folder / "with")
    with patch.object(building, "_audit", lambda *args: Audit({})):
        run(short, case.folder / "without")
    require_same(result(case.folder / "with"), result(case.folder / "without"), "with and without the probe: result")


def strength_zero_is_the_plain_run(case: Case) -> None:
    """To the last bit; and its own strength is not. Of methods with a setting `strength`."""
    plain, nothing = trained(case.config("none")), trained(case.config(strength=0.0))
    require_same(nothing.model.state_dict(), plain.model.state_dict(), "at strength 0: weights")
    some = trained(case.config())
    pairs = zip(some.model.parameters(), plain.model.parameters(), strict=True)
    require(any(not torch.equal(a, b) for a, b in pairs), "its strength in tiny_config() changes no weight")


def it_gets_the_batches_of_float_training(case: Case) -> None:
    """Its random draws do not change the order of the data, or how images are augmented."""
    seen: dict[str, list[Tensor]] = {case.method: [], "none": []}
    train_batch = Dataset.train_batch
    for name, batches in seen.items():
        session = build(case.scheduled(name))

        def noted(self: Dataset, indices: Tensor, generator: Any = None, to: Any = batches) -> tuple[Tensor, Tensor]:
            batch = train_batch(self, indices, generator)
            if generator is not None:  # calibration has none
                to.append(batch[0].clone())
            return batch

        with patch.object(Dataset, "train_batch", noted):
            train(session, lambda metrics: None)
    require(len(seen["none"]) == STEPS, f"{STEPS} steps")
    require_same(seen[case.method], seen["none"], "batches")


def it_starts_from_the_weights_of_float_training(case: Case) -> None:
    """And the same split; where weights are reparametrized, what layers compute with is the same."""
    wanted = case.config()
    session, plain = build(wanted), build(case.config("none"))
    own = dict(session.model.named_parameters())
    transforms = {
        f"{name}.weight": layer.weight_transform
        for name, layer in session.model.named_modules()
        if isinstance(layer, QuantLayer) and not isinstance(layer.weight_transform, Unfilled)
    }
    for name, parameter in plain.model.named_parameters():
        if name in transforms and not torch.equal(own[name], parameter):
            # What the layer computes with; there and back in fp32 costs a few last bits.
            torch.testing.assert_close(transforms[name](own[name]), parameter, rtol=1e-5, atol=1e-7)
        elif name in own:
            require(torch.equal(own[name], parameter), f"parameter {name} starts elsewhere")
    assert isinstance(session.dataset, Dataset)
    assert isinstance(plain.dataset, Dataset)
    if not set(dict(plain.model.named_parameters())) <= set(own):  # layers were replaced: the function tells
        images = session.dataset.normalized(session.dataset.val.images[:64])
        floating = session.evaluator.deployed(session.model, "float")
        torch.testing.assert_close(floating(images), plain.model.eval()(images), rtol=1e-4, atol=1e-5)
    require(torch.equal(session.dataset.train.images, plain.dataset.train.images), "other training images")
    require(torch.equal(session.dataset.val.labels, plain.dataset.val.labels), "another validation split")
