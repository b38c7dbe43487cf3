"""RunConfig: what names a run, and what does not."""

from typing import Any

import pytest
from config_common import FIELDS, FREE, GOLDEN, OTHER, RAW, run_id

from harness.core.config_base import StrictConfig
from harness.training.config import complete


def test_the_golden_run_id() -> None:
    assert run_id() == GOLDEN


@pytest.mark.parametrize(
    "changes",
    [
        {"deploy__bits": [2, 5]},
        {"deploy__methods": ["rtn", "lsq"]},
        {"runtime": {"device": "cpu", "threads": 7, "deterministic": True, "eval_batch_size": 3, "wandb": "off"}},
        {"runtime__checkpoint_every_s": 0, "runtime__wandb_project": "other"},
        {"data__root": "/somewhere"},
        {"data__download": True},
        # defaults, spelt out
        {"train": {"epochs": 40, "learning_rate": 1e-3, "patience": None}},
        {"model__width": 256, "model__init": "scratch"},
        {"ste__scale_gradient": "graph"},
        {"watch_bit": 3},
        {"exclude": []},
        {"phase": "final"},
        {"monitor": {}},
        {"monitor": {"deploy": "rtn"}},
        {"monitor__deploy": {"name": "rtn"}},
        {"quantizer": {}},
        {"quantizer__norms": "float"},
        # the same numbers in other words
        {"train__label_smoothing": 0, "train__clip_norm": None},
    ],
    ids=str,
)
def test_what_is_no_part_of_the_identity(changes: dict[str, Any]) -> None:
    assert run_id(**changes) == GOLDEN


def test_a_setting_of_the_monitored_method_counts_however_it_is_written() -> None:
    names = [
        run_id(monitor__deploy=deploy)
        for deploy in (
            "bn_reestimation",
            {"name": "bn_reestimation", "batches": 50},
            {"name": "bn_reestimation", "batches": 9},
        )
    ]
    assert names[0] == names[1] != names[2]
    assert GOLDEN not in names


def test_the_order_of_keys_is_no_part_of_the_identity() -> None:
    raw = {**RAW, "model": {"name": "mlp5", "width": 8, "depth": 3}, "train": {"epochs": 2, "batch_size": 8}}
    backwards = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in reversed(raw.items())
    }
    assert list(raw) != list(backwards)
    assert complete(raw).run_id() == complete(backwards).run_id()


@pytest.mark.parametrize("section", OTHER, ids=lambda section: section.__name__)
def test_every_field_is_tried_below(section: type[StrictConfig]) -> None:
    assert set(OTHER[section]) == set(section.model_fields)


@pytest.mark.parametrize(("key", "value"), FIELDS, ids=[key for key, _ in FIELDS])
def test_every_other_field_names_the_run(key: str, value: Any) -> None:
    assert (run_id(**{key: value}) == GOLDEN) == (key in FREE)
