"""The JSON Schema of sweep files: it accepts those that are shipped, and refuses what launching would refuse."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness import config
from harness.core import yaml_file
from harness.core.dotted import set_dotted
from harness.core.errors import UserError

SWEEPS = Path(__file__).parents[2] / "sweeps"
COMMITTED = SWEEPS / "schema.json"
FILES = sorted(SWEEPS.glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft7Validator:
    loaded = json.loads(COMMITTED.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(loaded)
    return jsonschema.Draft7Validator(loaded)


def changed(key: str, value: str) -> dict[str, Any]:
    raw = deepcopy(yaml_file.read(SWEEPS / "quickstart.yaml"))
    set_dotted(raw, key, yaml_file.parse(value))
    return raw


def test_the_committed_schema_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["--json-schema"]) == 0
    assert capsys.readouterr().out == COMMITTED.read_text(encoding="utf-8")


def test_a_name_beside_it_is_refused() -> None:
    with pytest.raises(UserError, match="--json-schema is of whole sweep files"):
        config.main(["--json-schema", "train"])


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_shipped_sweeps_are_valid_and_name_it(path: Path, schema: jsonschema.Draft7Validator) -> None:
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
    assert [error.message for error in schema.iter_errors(yaml_file.read(path))] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampler", "grid"),
        ("sampler", "{name: tpe, n_startup_trials: 3}"),
        ("objective", "[target, val/loss_w2]"),
        ("grid", "{model: [{name: mlp5, width: 3}, {name: 'timm:resnet18'}], target_bit: [null, 2]}"),
        ("base.target_bit", "W4a4"),
        ("base.deploy.bits", "[2, float, w4a8, {'*': w4, head: w8}]"),
        ("base.model.hidden", "[3, 4]"),
        ("base.monitor", "{deploy: {name: bn_reestimation, batches: 3}}"),
        ("base.deploy", "{bits: [2]}"),  # its scale may be in the cells
        ("cells.0.methods", "[lsq, {name: oscillation, strength: 3}]"),
        ("cells.0.set", "{monitor.deploy: bn_reestimation, data.augment.flip: true}"),
        ("cells.0.search", "{target_bit: [2, 3], train.epochs: {choices: [3, 4]}, satnl.kappa: {low: 1, high: 2}}"),
    ],
)
def test_short_forms_are_valid(key: str, value: str, schema: jsonschema.Draft7Validator) -> None:
    assert [error.message for error in schema.iter_errors(changed(key, value))] == []


@pytest.mark.parametrize(
    ("key", "value", "at"),
    [
        ("lable", "x", "$"),
        ("base.seed", "3", "$.base"),
        ("base.train.epoch", "3", "$.base.train"),
        ("base.train.epochs", "many", "$.base.train.epochs"),
        ("base.train.optimizer", "adan", "$.base.train.optimizer"),
        ("base.train.learning_rate", "0", "$.base.train.learning_rate"),
        ("base.model.name", "mlp6", "$.base.model.name"),
        ("base.model.small_stem", "true", "$.base.model"),  # of another model
        ("base.model", "{nmae: mlp5}", "$.base.model"),
        ("base.data.augment", "{flp: true}", "$.base.data.augment"),
        ("base.deploy.bits", "[2, 9]", "$.base.deploy.bits[1]"),
        ("base.deploy.bits", "[w4a9]", "$.base.deploy.bits[0]"),
        ("base.deploy.methods", "[ste]", "$.base.deploy.methods[0]"),
        ("base.monitor.deploy", "{name: rtn, batches: 3}", "$.base.monitor.deploy"),
        ("cells.0.methods", "lsk", "$.cells[0].methods"),
        ("cells.0.methods", "{name: lsq, levls: full}", "$.cells[0].methods"),
        ("cells.0.grid", "{target_bt: [2]}", "$.cells[0].grid"),
        ("cells.0.grid", "{model.widht: [2]}", "$.cells[0].grid"),
        ("grid", "{data.conut: [2]}", "$.grid"),
        ("cells.0.search", "{model.exclude: [2]}", "$.cells[0].search"),
        ("cells.0.grid", "{target_bit: 2}", "$.cells[0].grid.target_bit"),
        ("cells.0.set", "{train.epochs: x}", "$.cells[0].set['train.epochs']"),
        ("cells.0.search", "{train.optimizer: {low: 1, high: 2}}", "$.cells[0].search['train.optimizer']"),
        ("cells.0.search", "{train.optimizer: [adam, adan]}", "$.cells[0].search['train.optimizer']"),
        ("cells.0.search", "{monitor.deploy: [rtn]}", "$.cells[0].search"),
        ("sampler", "tep", "$.sampler"),
        ("sampler", "{name: gp, n_ei_candidates: 3}", "$.sampler"),
        ("pruner", "{name: percentile}", "$.pruner"),
        ("objective", "targt", "$.objective"),
        ("tune.trials", "true", "$.tune.trials"),
        ("final", "{}", "$.final"),
    ],
)
def test_mistakes_are_refused_where_they_are(key: str, value: str, at: str, schema: jsonschema.Draft7Validator) -> None:
    assert [error.json_path for error in schema.iter_errors(changed(key, value))] == [at]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base.model", "{name: nets/small_cnn.py, own: 3}"),
        ("base.model", "{name: 'my_package.nets:Net', own: 3}"),
        ("grid", "{model: [{name: mlp5}, {name: my_package.nets, own: 3}]}"),
        ("grid", "{model.name: [mlp5, nets/small_cnn.py]}"),
        ("cells.1.set", "{model.name: nets/small_cnn.py}"),
        ("cells.1.search", "{model.name: {choices: [mlp5, nets/small_cnn.py]}}"),
    ],
)
def test_a_component_from_outside_has_settings_of_its_own(
    key: str, value: str, schema: jsonschema.Draft7Validator
) -> None:
    raw = changed(key, value)
    raw["cells"][0] |= {"set": {"model.own": 3}, "grid": {"model.other": [1, 2]}, "search": {"model.own": [1, 2]}}
    assert [error.message for error in schema.iter_errors(raw)] == []
    raw["cells"][0]["set"]["data.own"] = 3  # the data set is one of the harness
    assert [error.json_path for error in schema.iter_errors(raw)] == ["$.cells[0].set"]
