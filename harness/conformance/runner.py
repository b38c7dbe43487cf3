"""Carries out the checks of a component, one after the other, and says what became of each."""

import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.conformance import activations, components, deploying, training
from harness.conformance.common import MODELS, Case, fitting, trained_in_rounding
from harness.core import registry
from harness.core.errors import UserError
from harness.methods import find

#: Of methods: on each model that a method fits, and on the first of them.
ON_EACH_MODEL = (
    training.a_resumed_run_equals_an_uninterrupted_one,
    training.the_whole_state_is_resumed,
    training.it_gets_the_batches_of_float_training,
    training.the_probe_of_the_network_changes_no_number,
)
ON_ONE_MODEL = (
    training.its_file_says_what_it_is,
    training.its_configuration_goes_through_json,
    training.it_trains_to_finite_values,
    training.it_starts_from_the_weights_of_float_training,
    deploying.evaluation_changes_nothing,
    deploying.deployment_leaves_the_source_untouched_and_is_on_a_grid,
    deploying.a_float_deployment_is_what_training_had_but_for_rounding,
)
OF_MODELS = (
    components.its_weights_depend_on_the_seed_alone,
    components.its_outputs_are_one_row_of_logits_an_image,
    components.every_weight_is_accounted_for,
    components.it_trains_and_deploys,
)
OF_DATA = (
    components.its_images_and_labels_are_legal,
    components.it_is_read_the_same_each_time,
    components.its_shape_is_that_of_its_batches,
)
#: Where one of these fails, those after it would only fail by the same cause, in words that hide it.
NEEDED = (components.its_settings_go_through_json, components.its_images_and_labels_are_legal)
OF_TASKS = (
    components.its_loss_has_a_gradient,
    components.sums_of_batches_are_those_of_the_split,
    components.what_is_equal_does_not_diverge,
)
QUANTIZERS = ({"granularity": "channel"}, {"range": "mse"})


class Check(NamedTuple):
    """One check. on: what it is carried out on, where there are several."""

    does: Callable[..., None]
    on: str
    run: Callable[[], None]

    @property
    def title(self) -> str:
        """The function's name as words."""
        return self.does.__name__.replace("_", " ") + (f" ({self.on})" if self.on else "")


def checks_of(kind: str, name: str, settings: dict[str, Any], folder: Path) -> Iterator[Check]:
    """The checks of a component. settings: of a model or data set. folder: empty, for runs."""
    if kind == "method":
        yield from _of_method(name, folder)
    elif kind == "task":
        yield from (Check(check, "", partial(check, name)) for check in OF_TASKS)
    else:
        checks = OF_MODELS if kind == "model" else OF_DATA
        named = {"name": name, **settings}
        through_json = components.its_settings_go_through_json
        yield Check(through_json, "", partial(through_json, kind, named))
        yield from (Check(check, "", partial(check, named)) for check in checks)


def _of_method(name: str, folder: Path) -> Iterator[Check]:
    found, models = find(name), fitting(name, MODELS)
    if not models:
        raise UserError(f"method {registry.shown(name)!r}: none of {', '.join(MODELS)} has {', '.join(found.requires)}")

    def on(check: Callable[..., None], model: str, **more: Any) -> Check:
        own = folder / f"{check.__name__}-{model}"
        own.mkdir()
        where = ", ".join((model, *(f"{key}: {value}" for each in more.values() for key, value in each.items())))
        return Check(check, where, partial(check, Case(name, model, folder=own), **more))

    yield from (on(check, models[0]) for check in ON_ONE_MODEL)
    yield from (on(check, model) for check in ON_EACH_MODEL for model in models)
    if "strength" in found.Config.model_fields:
        yield from (on(training.strength_zero_is_the_plain_run, model) for model in models)
    for quantizer in QUANTIZERS:
        check = deploying.every_group_that_shares_a_step_is_on_a_grid
        yield Check(check, str(quantizer), partial(check, Case(name, models[0]), quantizer))
    yield from _with_activations(name, found.activations, folder)
    yield from _deployed_by(name, found.acts_on, folder)


def _with_activations(name: str, quantizers: str, folder: Path) -> Iterator[Check]:
    if not quantizers:
        return
    stack = [name]
    codes = activations.no_input_has_more_codes_than_its_bits_allow
    yield Check(codes, "w4a4", partial(codes, stack))
    if quantizers != "calibrated":
        resumed, trained = (
            activations.a_resumed_run_equals_an_uninterrupted_one,
            activations.quantizers_of_every_input_are_trained,
        )
        evaluated = activations.evaluation_changes_nothing_and_points_in_float_are_float
        own = folder / "w4a4"
        own.mkdir()
        yield Check(resumed, "w4a4", partial(resumed, stack, own))
        yield from (Check(check, "w4a4", partial(check, stack)) for check in (trained, evaluated))


def _deployed_by(name: str, acts_on: str, folder: Path) -> Iterator[Check]:
    if not registry.has_deploy(name):
        return
    own = folder / "monitor"
    own.mkdir()
    resumed = deploying.a_resume_where_epochs_are_measured_after_it
    yield Check(resumed, "resnet18", partial(resumed, Case(name, folder=own)))
    for method in ("none", trained_in_rounding()):  # a network of float training, and one of QAT
        if acts_on == "weights":
            check = deploying.every_layer_may_become_another_value_of_its_grid
            yield Check(check, method, partial(check, method, name))
        elif acts_on in ("weights given rounded inputs", "inputs, weights"):
            given = deploying.weights_and_inputs_are_rounded_on_grids_of_the_point
            yield Check(given, method, partial(given, method, name, "w3a4"))
        elif acts_on == "bits of layers":
            allocating = deploying.bits_of_layers_stay_within_a_budget
            yield Check(allocating, method, partial(allocating, method, name, 3))


def run_checks(kind: str, name: str, settings: dict[str, Any], say: Callable[[str], None] = print) -> int:
    """Carry out all checks of a component, a line each; returns how many failed or were left out."""
    failed, seen, needed = 0, dict[str, str](), ""
    with tempfile.TemporaryDirectory() as folder:
        for check in checks_of(kind, name, settings, Path(folder)):
            if needed:
                failed += 1
                say(f"left  {check.title}: it needs that {needed}")
                continue
            problem = _problem(check)
            failed += problem is not None
            needed = check.title if problem is not None and check.does in NEEDED else ""
            if problem is None:
                say(f"ok    {check.title}")
            else:
                first = seen.setdefault(problem, check.title)
                say(f"FAIL  {check.title}: {problem if first == check.title else f'as {first}'}")
    return failed


def _problem(check: Check) -> str | None:
    """Why a check failed, in one line; None where it did not."""
    try:
        check.run()
    except (AssertionError, UserError) as error:
        return " ".join(str(error).split()) or "an assertion failed"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}, line {frame.lineno})"
    return None
