"""Mistakes in files: one line each, at the place where it was written, with what is legal."""

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from cli_sweep import edited
from pydantic import BaseModel, Field, ValidationError

from harness.core.validation import explain
from harness.sweep.algorithms import SuccessiveHalving
from harness.sweep.config import SweepConfig
from harness.training.config import RunConfig

RUN: dict[str, Any] = {
    "methods": "ste",
    "target_bit": 2,
    "data": {"name": "digits"},
    "model": {"name": "mlp5"},
    "train": {"epochs": 1},
    "deploy": {"bits": [2], "scale": "recalibrate"},
}


def said(model: type[BaseModel], raw: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(raw)
    return explain(refused.value, model)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "f"}, "objective.0.direction: missing (legal: minimize, maximize)"),
        (
            ["worst", {"name": "f", "direction": "min"}],
            "objective.1.direction: 'min': unknown value; did you mean 'minimize'? (legal: minimize, maximize)",
        ),
        (
            {"nam": "f", "direction": "minimize"},
            "objective.0.name: missing\nobjective.0.nam: unknown key; did you mean 'name'? (legal: direction, name)",
        ),
        ([3], "objective.0: 3: Input should be a valid string or a section (keys: direction, name)"),
    ],
)
def test_of_a_union_only_the_branch_that_was_meant_is_explained(objective: Any, message: str) -> None:
    assert said(SweepConfig, edited({"objective": objective})) == message


def test_other_unions() -> None:
    choices = edited({"cells/0/search": {"x": {"choices": [1, [2]]}}})
    kinds = "a valid boolean, a valid integer, a valid number or a valid string"
    assert said(SweepConfig, choices) == f"cells.0.search.x.choices.1: [2]: Input should be {kinds}"
    assert said(SweepConfig, edited({"sampler": 3})) == "sampler: 3: Input should be a section (keys: name)"
    assert said(SweepConfig, edited({"pruner": {"nam": "x"}})) == "pruner.name: missing"
    assert said(SuccessiveHalving, {"min_resource": "atuo"}) == (
        "min_resource: 'atuo': Input should be a valid integer or 'auto'; did you mean 'auto'?"
    )


class Inner(BaseModel):
    width: int


class Colour(Enum):
    RED = "red"


class Outer(BaseModel):
    """What a component from outside may have."""

    deep: dict[str, list[Annotated[str, Field(min_length=3)] | Inner | None]] = {}
    one: Inner | None = None
    size: Annotated[int, Field(ge=1)] | list[int] = 1
    colour: Colour = Colour.RED


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"deep": {"str": [None, {"width": "x"}]}}, "deep.str.1.width: 'x': Input should be a valid integer"),
        ({"deep": {"a": [{}]}}, "deep.a.0.width: missing"),
        (
            {"deep": {"a": ["ab"]}},
            "deep.a.0: 'ab': String should have at least 3 characters; Input should be a section",
        ),
        ({"one": {}}, "one.width: missing"),
        ({"size": ["x"]}, "size.0: 'x': Input should be a valid integer"),
        ({"size": 0}, "size: 0: Input should be greater than or equal to 1 or a valid list"),
        ({"colour": "rde"}, "colour: 'rde': unknown value; did you mean 'red'? (legal: red)"),
    ],
)
def test_unions_of_components_from_outside(raw: dict[str, Any], message: str) -> None:
    found = said(Outer, raw)
    assert found.startswith(message)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"deploy": {"bits": [2], "scale": "recalibrated"}},
            "deploy.scale: 'recalibrated': unknown value; did you mean 'recalibrate'? "
            "(legal: keep_step, keep_range, recalibrate)",
        ),
        ({"activations": {"first_last": 9}}, "activations.first_last: 9: unknown value (legal: 8, same, float)"),
        (
            {"train": {"optimizer": "adamww"}},
            "train.optimizer: 'adamww': unknown value; did you mean 'adamw'? (legal: adam",
        ),
        ({"runtime": {"compile": None}}, "runtime.compile: None: unknown value (legal: auto, on, off)"),
    ],
)
def test_a_wrong_word_comes_with_the_nearest_and_all_legal_ones(section: dict[str, Any], message: str) -> None:
    assert said(RunConfig, RUN | section).startswith(message)


def test_every_literal_of_a_section_lists_its_words() -> None:
    class Many(BaseModel):
        word: Literal["a", "b", "or", 3, True]

    assert said(Many, {"word": "c"}) == "word: 'c': unknown value (legal: a, b, or, 3, True)"
