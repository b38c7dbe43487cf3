"""RunConfig: what names a run, and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from config_common import FIELDS, FREE, GOLDEN, RAW, run_id
from pydantic import Field

from harness.core.config_base import IDENTITY_IF_CHANGED, NOT_IDENTITY, StrictConfig
from harness.core.errors import UserError
from harness.core.validation import explain
from harness.training.config import complete
from harness.training.sections import TrainConfig

FLOAT_RUN = {"methods": "none", "target_bit": None, "watch_bit": 2}

COMPONENTS = {
    "model__width": 255,
    "model__depth": 4,
    "model__hidden": [256, 128],
    "model__image_side": 16,
    "data__val_fraction": 0.2,
    "data__train_fraction": 0.5,
    "data__resize": 16,
    "data__augment": {"flip": True},
    "ste__scale_gradient": "detached",
}


@pytest.mark.parametrize(("key", "value"), COMPONENTS.items(), ids=COMPONENTS)
def test_every_setting_of_a_component_names_the_run(key: str, value: Any) -> None:
    assert run_id(**{key: value}) != GOLDEN


def test_all_those_runs_have_names_of_their_own() -> None:
    names = [run_id(**{key: value}) for key, value in (*FIELDS, *COMPONENTS.items()) if key not in FREE]
    assert len(set(names)) == len(names)
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in names)


def test_the_order_of_a_stack_names_the_run() -> None:
    assert run_id(methods=["ste", "oscillation"]) != run_id(methods=["oscillation", "ste"])


class Old(StrictConfig):
    a: int = 1


class New(Old):
    """Old, with fields that came later."""

    later: tuple[str, ...] = Field((), json_schema_extra=IDENTITY_IF_CHANGED)
    made: list[int] = Field(default_factory=list, json_schema_extra=IDENTITY_IF_CHANGED)
    path: str = Field("x", json_schema_extra=NOT_IDENTITY)


class Outer(StrictConfig):
    inner: Old = New()
    several: tuple[Old, ...] = (New(),)
    named: dict[str, Old] = Field(default_factory=lambda: {"k": New(path="y")})


def test_a_field_added_later_counts_once_it_leaves_its_default() -> None:
    assert New().identity() == New(later=(), made=[], path="elsewhere").identity() == Old().identity() == {"a": 1}
    assert New(later=("b",)).identity() == {"a": 1, "later": ["b"]}
    assert New(made=[3]).identity() == {"a": 1, "made": [3]}


def test_identity_reaches_into_sections_lists_and_mappings() -> None:
    assert Outer().identity() == {"inner": {"a": 1}, "several": [{"a": 1}], "named": {"k": {"a": 1}}}


@pytest.mark.parametrize("form", ["checkpoint:{path}", "{path}"])
def test_of_a_checkpoint_the_content_names_the_run(tmp_path: Path, form: str) -> None:
    paths = [tmp_path / name for name in ("a.pt", "b.pt", "c.pt")]
    for path, content in zip(paths, (b"weights", b"weights", b"others")):
        path.write_bytes(content)
    same, moved, other = (run_id(model__init=form.format(path=path)) for path in paths)
    assert same == moved
    assert same != other
    assert same != GOLDEN
    paths[0].write_bytes(b"others")
    assert run_id(model__init=form.format(path=paths[0])) == other


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.init: .*'/no/such\.pt'"):
        run_id(model__init="checkpoint:/no/such.pt")


def test_a_checkpoint_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pt").write_bytes(b"weights")
    assert run_id(model__init="checkpoint:~/a.pt") == run_id(model__init=f"checkpoint:{tmp_path}/a.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"methods": ["oscillation"], "data": {"name": "digits", "root": "/x", "augment": {"flip": True}}},
        {"target_bit": None, "watch_bit": 2, "methods": ["none"], "exclude": ["layer*"]},
        {"model": {"name": "mlp5", "hidden": [8, 4]}, "train": {"patience": 3, "clip_norm": 0.5}},
    ],
    ids=["plain", "paths", "float", "lists"],
)
def test_json_there_and_back(changes: dict[str, Any]) -> None:
    config = complete({**RAW, **changes})
    text = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    again = complete(json.loads(text))
    assert again == config
    assert again.run_id() == config.run_id()
    assert json.dumps(again.model_dump(mode="json")) == text


def test_complete_fills_in_every_default() -> None:
    config = complete(RAW)
    assert config.methods == ({"name": "ste", "scale_gradient": "graph", "activation_momentum": 0.1},)
    assert config.model["width"] == 256
    assert config.data["normalize"] == "unit"
    assert config.train == TrainConfig()
    assert config.watch_bit == 3


def test_bits_that_are_evaluated_and_monitored() -> None:
    config = complete({**RAW, "deploy": {"bits": [8, 2], "scale": "recalibrate"}})
    assert [each.plain for each in config.evaluated_points] == [2, 3, 8, "float"]
    assert config.monitored_point.plain == 3
    plain = complete({**RAW, "target_bit": None, "watch_bit": 4, "methods": ["none"]})
    assert [each.plain for each in plain.evaluated_points] == [2, 3, 4, 8, "float"]
    assert plain.monitored_point.plain == "float"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_bit": None, "watch_bit": 2}, r"methods: 'ste' prepares for a bit-width; set target_bit to 2 to 8"),
        ({"target_bit": None, "methods": ["none"]}, r"target_bit is missing: .* watch_bit"),
        ({"also_watch": [3]}, r"also_watch is for float runs"),
        ({**FLOAT_RUN, "also_watch": [3, 2]}, r"also_watch: \[3, 2\] names a bit-width twice, or watch_bit's"),
        ({**FLOAT_RUN, "also_watch": [9]}, r"also_watch.0: 9: no bit-width"),
        ({"methods": ["ste", "ste"]}, r"names a method twice"),
        ({"methods": []}, r"methods: \[\]"),
        ({"seed": -1}, r"seed: -1"),
        ({"seed": 2**32}, r"seed: 4294967296"),
        ({"phase": "test"}, r"phase: 'test': unknown value.*\(legal: tune, final\)"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        complete({**RAW, **changes})


def test_several_mistakes_are_all_named() -> None:
    raw = {**RAW, "train": {"epohs": 1, "batch_size": "x"}, "watch_bit": 9}
    with pytest.raises(UserError) as caught:
        complete(raw)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["watch_bit", "train.batch_size", "train.epohs"]


def test_a_long_value_is_cut() -> None:
    with pytest.raises(UserError) as caught:
        complete({**RAW, "phase": "x" * 500})
    assert len(str(caught.value)) < 160


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        complete(RAW).seed = 5  # type: ignore[misc]


def test_explain_takes_a_prefix() -> None:
    with pytest.raises(ValueError) as caught:
        TrainConfig.model_validate({"epohs": 3})
    assert explain(caught.value, TrainConfig, "x: ").startswith("x: epohs: unknown key; did you mean 'epochs'?")  # type: ignore[arg-type]
