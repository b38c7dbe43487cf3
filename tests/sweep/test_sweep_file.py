"""Sweep files: cells, overrides, dotted keys, growth."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from three_cells import RAW, spec

from harness.core.errors import UserError
from harness.sweep.cells import assign, expand
from harness.sweep.changes import changed_keys
from harness.sweep.config import SweepConfig, plain, read_sweep


def test_cells_in_the_order_of_the_file() -> None:
    cells = expand(spec())
    assert [cell.id for cell in cells] == [
        "none,watch_bit=2",
        "ste,target_bit=2",
        "ste,target_bit=3",
        "ste+oscillation,target_bit=4",
    ]
    assert [cell.grid for cell in cells] == [{}, {"target_bit": 2}, {"target_bit": 3}, {}]
    assert [cell.set for cell in cells] == [{"watch_bit": 2}, {}, {}, {"target_bit": 4}]


def test_the_outer_grid_multiplies_every_cell() -> None:
    cells = expand(spec(grid={"model.width": [4, 8], "train.batch_size": [16]}))
    assert len(cells) == 8
    assert cells[1].id == "none,model.width=8,train.batch_size=16,watch_bit=2"
    assert cells[1].raw["model"] == {"name": "mlp5", "width": 8}
    assert cells[0].raw["model"] == {"name": "mlp5", "width": 4}
    assert cells[0].raw["train"] == {"epochs": 1, "batch_size": 16}


def test_a_grid_over_whole_sections_is_labelled_by_name() -> None:
    cells = expand(spec(grid={"model": [{"name": "mlp5", "width": 4}, {"width": 5, "name": "mlp5"}]}))
    assert [cell.id for cell in cells[:2]] == ["none,model=mlp5-4,watch_bit=2", "none,model=mlp5-5,watch_bit=2"]


def test_cells_share_nothing() -> None:
    given = spec()
    cells = expand(given)
    cells[0].raw["train"]["epochs"] = 99  # type: ignore[index]
    assert cells[1].raw["train"] == {"epochs": 1}
    assert given.base["train"] == {"epochs": 1}


def test_the_configuration_of_a_run() -> None:
    config = expand(spec())[3].config({"oscillation.strength": 2.5, "train.learning_rate": 0.5}, 7, "final")
    assert (config.seed, config.phase, config.target_bit) == (7, "final", 4)
    defaults = {"scale_gradient": "graph", "direction": "graph"}
    assert config.methods[1] == {"name": "oscillation", "strength": 2.5, **defaults}
    assert config.train.learning_rate == 0.5


def test_searched_values_do_not_stay_in_the_cell() -> None:
    cell = expand(spec())[3]
    before = deepcopy(dict(cell.raw))
    names = {cell.config({"oscillation.strength": value}, 0, "tune").run_id() for value in (1.0, 2.0, 1.0)}
    assert len(names) == 2
    assert cell.raw == before


def test_an_illegal_value_names_the_cell() -> None:
    with pytest.raises(UserError, match=r"^cell ste\+oscillation,target_bit=4: method 'oscillation': strength: -1"):
        expand(spec())[3].config({"oscillation.strength": -1}, 0, "tune")


@pytest.mark.parametrize(
    ("key", "after"),
    [
        ("target_bit", {"target_bit": 5, "methods": [{"name": "ste"}], "train": {"epochs": 1}}),
        ("train.epochs", {"methods": [{"name": "ste"}], "train": {"epochs": 5}}),
        ("data.augment.flip", {"methods": [{"name": "ste"}], "train": {"epochs": 1}, "data": {"augment": {"flip": 5}}}),
        ("ste.new", {"methods": [{"name": "ste", "new": 5}], "train": {"epochs": 1}}),
    ],
)
def test_assign(key: str, after: dict[str, Any]) -> None:
    raw: dict[str, Any] = {"methods": [{"name": "ste"}], "train": {"epochs": 1}}
    assign(raw, key, 5)
    assert raw == after


@pytest.mark.parametrize(("key", "said"), [("lsq.levels", "unknown setting 'lsq'"), ("train.epochs.x", "is a value")])
def test_assign_refuses(key: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        assign({"methods": [{"name": "ste"}], "train": {"epochs": 1}}, key, 5)


def read(tmp_path: Path, *overrides: str) -> SweepConfig:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(RAW, sort_keys=False))
    return read_sweep(tmp_path / "s.yaml", overrides)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("tune.trials=9", {"tune": {"trials": 9}}),
        ("final.seeds=[5, 6]", {"final": {"seeds": [5, 6]}}),
        ("sampler=random", {"sampler": "random"}),
        ("sampler.name=qmc", {"sampler": "qmc"}),
        ("base.train.epochs=3", {"base": {**RAW["base"], "train": {"epochs": 3}}}),
        ("train.epochs=3", {"base": {**RAW["base"], "train": {"epochs": 3}}}),
        ("base.train.learning_rate=1e-4", {"base": {**RAW["base"], "train": {"epochs": 1, "learning_rate": 1e-4}}}),
        ("data.root=/photos", {"base": {**RAW["base"], "data": {"name": "digits", "root": "/photos"}}}),
        ("cells.0.set.watch_bit=3", {"cells": [{**RAW["cells"][0], "set": {"watch_bit": 3}}, *RAW["cells"][1:]]}),
        ("max_retries=0", {"max_retries": 0}),
        ("name=a=b", None),
    ],
)
def test_overrides(tmp_path: Path, override: str, changed: dict[str, Any] | None) -> None:
    if changed is None:
        with pytest.raises(UserError, match="name: 'a=b'"):
            read(tmp_path, override)
    else:
        assert read(tmp_path, override) == spec(**changed)


def test_a_later_override_wins(tmp_path: Path) -> None:
    assert read(tmp_path, "tune.trials=3", "tune.trials=4").tune.trials == 4


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("tune.trials", 3, []),
        ("tune.trials", 1, ["tune.trials"]),
        ("tune.seed", 5, ["tune.seed"]),
        ("final.seeds", [0, 1, 2], []),
        ("final.seeds", [2, 1, 0], []),
        ("final.seeds", [0], ["final.seeds"]),
        ("label", "reduced: 5 epochs", []),
        ("workers", 5, []),
        ("max_retries", 5, []),
        ("base.runtime", {"device": "cpu"}, []),
        ("base.data.root", "/x", []),
        ("base.data.download", True, []),
        ("base.train.epochs", 2, ["base.train.epochs"]),
        ("base.model.width", 9, ["base.model.width"]),
        ("keep_best", "all", ["keep_best"]),
        ("sampler", "qmc", ["sampler.name"]),
        ("objective", "mean", ["objective"]),
    ],
)
def test_changed_keys(path: str, value: Any, changed: list[str]) -> None:
    raw = deepcopy(RAW)
    *parents, last = path.split(".")
    place = raw
    for part in parents:
        place = place[part]
    place[last] = value
    after = SweepConfig.model_validate(raw)
    assert changed_keys(plain(spec()), plain(after)) == changed


def test_only_whole_keys_are_free() -> None:
    assert changed_keys({"base": {"data": {"root_x": 1}}}, {"base": {"data": {"root_x": 2}}}) == ["base.data.root_x"]


def test_a_sweep_without_tuning_may_not_begin_to_tune() -> None:
    before = plain(spec(tune={"trials": 0}))
    assert changed_keys(before, plain(spec())) == ["tune.trials"]


def test_json_there_and_back() -> None:
    given = spec(
        grid={"model.width": [4, 8]}, objective=["mean", "val/loss_w2"], sampler={"name": "tpe", "n_startup_trials": 1}
    )
    again = SweepConfig.model_validate(plain(given))
    assert again == given
    assert plain(again) == plain(given)
    assert again.cells[2].search["oscillation.strength"] == given.cells[2].search["oscillation.strength"]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_sweeps_that_come_along_are_legal(path: Path) -> None:
    assert expand(read_sweep(path))
