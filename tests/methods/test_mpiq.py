"""MPIQ and its baselines on whole networks."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from allocation_common import refuse_evaluation_images, trained
from test_ohq import chosen, means

from harness.core.bits import BitWidths
from harness.methods._budget import Budget
from harness.methods.mpiq import Mpiq
from harness.quantization.layers import weight_layers
from harness.quantization.sensitivity import first_order_scores
from harness.training.evaluator import Deployment

QUICK = {"images": 128, "draws": 2}
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "score": {},
    "measured": {"accept": "measured"},
    "hessian": {"allocation": "hessian"},
    "random": {"allocation": "random"},
}


def deployed(point: Any, network: str = "mlp", seed: int | None = None, **settings: Any) -> Deployment:
    session = trained(network)
    evaluator = replace(session.evaluator, settings={"mpiq": {"name": "mpiq", **QUICK, **settings}})
    if seed is not None:
        evaluator = replace(evaluator, context=replace(evaluator.context, seed=seed))
    (found,) = evaluator.deployments(session.model, [("mpiq", BitWidths.of(point))])
    return found


@pytest.mark.parametrize("point", [pytest.param(3, marks=pytest.mark.slow), "w4a4"])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_every_allocation_keeps_the_budget(allocation: str, point: Any) -> None:
    found, wanted = deployed(point, **ALLOCATIONS[allocation]), BitWidths.of(point)
    weights, inputs = means(found)
    assert wanted.weights is not None
    assert weights <= wanted.weights
    assert found.notes["weight_bits"] == pytest.approx(weights)
    if wanted.activations is not None:
        assert inputs <= wanted.activations
    if allocation == "random":
        assert weights > wanted.weights - 0.8
    again = deployed(point, **ALLOCATIONS[allocation])
    assert again.allocated == found.allocated
    assert again.notes == found.notes
    states = [each.model.state_dict() for each in (found, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_uniform_is_round_to_nearest() -> None:
    session = trained("vit")
    for point in (3, "w4a4"):
        found, rounded = deployed(point, "vit", allocation="uniform"), session.evaluator.deployed(session.model, point)
        images = session.evaluator.calibration.images(50)
        assert torch.equal(found.model(images), rounded(images))
        layers = weight_layers(rounded)
        assert all(torch.equal(layer.weight, layers[name].weight) for name, layer in weight_layers(found.model).items())


def budget(point: Any) -> Budget:
    session = trained()
    return Budget(
        deepcopy(session.model), BitWidths.of(point), session.evaluator.context, session.evaluator.calibration
    )


def test_the_program_is_ahead_of_uniform_and_random_in_its_own_score() -> None:
    for allocation in ("inputs", "hessian"):
        given = budget("w4a4")
        context = given.context
        method = Mpiq(Mpiq.Config(**QUICK, allocation=allocation), context)
        batches = given.batches(128)
        scores = (method._by_inputs if allocation == "inputs" else method._by_curvature)(given, batches)
        program = given.program(*scores)
        found = program.score(program.solved())
        for seed in range(5):
            drawn = Mpiq(Mpiq.Config(allocation="random"), replace(context, seed=seed))._at_random(given)
            assert program.fits(drawn)
            assert found <= program.score(drawn)
        assert found < program.score(given.uniform)


def test_more_bits_are_never_worse_in_the_programs_score() -> None:
    found = []
    for bits in (2, 3, 4, 5, 6):
        given = budget(bits)
        program = given.program(*Mpiq(Mpiq.Config(), given.context)._by_inputs(given, given.batches(64)))
        found.append(program.score(program.solved()))
    assert all(later <= earlier for earlier, later in pairwise(found))


@pytest.mark.parametrize("point", [pytest.param(3, marks=pytest.mark.slow), "w3a3"])
def test_what_is_accepted_by_measuring_never_has_a_higher_loss_than_uniform(point: Any) -> None:
    session, found = trained(), deployed(point, accept="measured", allocation="hessian")
    images, targets = (torch.cat(each)[:128] for each in zip(*session.evaluator.calibration.batches(4)))

    def loss(network: Any) -> float:
        with torch.no_grad():
            return float(session.task.loss(network(images), targets))

    uniform = loss(session.evaluator.deployed(session.model, point))
    assert found.notes["uniform_calibration_loss"] == pytest.approx(uniform, rel=1e-5)
    assert found.notes["calibration_loss"] == pytest.approx(loss(found.model), rel=1e-5)
    assert loss(found.model) < uniform
    assert len({each.weights for each in chosen(found).values()}) > 1


def test_what_raises_the_loss_is_not_accepted() -> None:
    """With the scores upside down each solution is worse than the uniform allocation."""
    given = budget("w4a4")
    batches = given.batches(64)
    method = Mpiq(Mpiq.Config(accept="measured"), given.context)
    program = given.program(*method._by_inputs(given, batches))
    wrong = replace(program, scores=[-each for each in program.scores])
    uniform = given.loss(given.uniform, batches)
    assert given.loss(wrong.solved(), batches) > uniform
    assert given.loss(method._accepted(given, wrong, batches), batches) <= uniform
    assert method.notes["calibration_loss"] <= method.notes["uniform_calibration_loss"]


def test_weights_and_inputs_have_a_budget_each() -> None:
    """Where more bits are always better, and nothing else is a limit."""
    given = budget("w4a4")
    more_is_better = {(name, bits): -float(bits) for name in given.sizes for bits in given.candidates}
    found = given.means(given.program(more_is_better, more_is_better).solved())
    assert 3.5 < found["weight_bits"] <= 4
    assert 3.5 < found["activation_bits"] <= 4


def test_weights_take_the_score_of_their_input() -> None:
    given = budget("w3a4")
    batches = given.batches(32)
    weights, inputs = Mpiq(Mpiq.Config(), given.context)._by_inputs(given, batches)
    every = sorted({*given.candidates, *given.free_candidates})
    expected = first_order_scores(given.float_network, given.input_quantizers(every), batches, given.context.task.loss)
    assert weights == inputs == expected


def test_random_allocations_follow_the_seed() -> None:
    found = [deployed(4, seed=seed, allocation="random").allocated for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    assert len(set(found[1:])) == 3


def test_calibration_is_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    trained()
    seen = refuse_evaluation_images(monkeypatch)
    for settings in ALLOCATIONS.values():
        assert deployed("w3a3", **settings).allocated
    assert seen


def test_nothing_to_measure_is_refused() -> None:
    for allocation in ("random", "uniform"):
        with pytest.raises(ValueError, match=f"accept: measured has no meaning with allocation: {allocation}"):
            Mpiq.Config(allocation=allocation, accept="measured")
