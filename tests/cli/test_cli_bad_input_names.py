"""Bad input is refused before anything starts: field, value, what is legal, and the nearest spelling.

All in this process; tests/cli/test_cli_bad_input_files.py carries out whole commands.
"""

import math
from typing import Any

import pytest
from cli_bad_input_common import RATE, Edits
from cli_sweep import GONE, SEARCH, Cli, edited

UNKNOWN_KEYS = {
    "top level": ({"sampller": "tpe"}, ["sampller: unknown key; did you mean 'sampler'?", "(legal: base, cells"]),
    "base": (
        {"base/modle": {}},
        ["base: unknown setting 'modle'; did you mean 'model'?", "legal: activations, also_watch, data"],
    ),
    "base, seed": ({"base/seed": 3}, ["base: unknown setting 'seed'"]),
    "train": ({"base/train/epohs": 3}, ["train.epohs: unknown key; did you mean 'epochs'?", "batch_size"]),
    "deploy": ({"base/deploy/bit": [2]}, ["deploy.bit: unknown key; did you mean 'bits'?", "precision, scale"]),
    "model": ({"base/model/widht": 3}, ["model 'mlp5': widht: unknown key; did you mean 'width'?", "legal: depth"]),
    "data": ({"base/data/normalise": "unit"}, ["'digits': normalise: unknown key; did you mean 'normalize'?"]),
    "augment": ({"base/data/augment": {"flipp": True}}, ["augment.flipp: unknown key; did you mean 'flip'?"]),
    "quantizer": ({"base/quantizer": {"rnge": "max"}}, ["quantizer.rnge: unknown key; did you mean 'range'?"]),
    "runtime": ({"base/runtime": {"devise": "cpu"}}, ["runtime.devise: unknown key; did you mean 'device'?"]),
    "cell": ({"cells/0/serch": {}}, ["cells.0.serch: unknown key; did you mean 'search'? (legal: grid, methods"]),
    "tune": ({"tune/trails": 3}, ["tune.trails: unknown key; did you mean 'trials'? (legal: seed, trials)"]),
    "final": ({"final/seed": 3}, ["final.seed: unknown key; did you mean 'seeds'? (legal: seeds)"]),
    "set": ({"cells/0/set": {"train.epohs": 3}}, ["train.epohs: unknown key; did you mean 'epochs'?"]),
    "set, section": ({"cells/0/set": {"trian.epochs": 3}}, ["unknown setting 'trian'; did you mean 'train'?"]),
    "set below a value": ({"cells/0/set": {"target_bit.x": 3}}, ["target_bit.x: target_bit is a value"]),
    "grid": ({"grid": {"model.widht": [3]}}, ["widht: unknown key; did you mean 'width'?"]),
    "grid, section": ({"grid": {"modle.width": [3]}}, ["unknown setting 'modle'; did you mean 'model'?"]),
    "method": (
        {"cells/0/methods": [{"name": "oscillation", "strenght": 3}]},
        ["method 'oscillation': strenght: unknown key; did you mean 'strength'?", "scale_gradient"],
    ),
    "search": ({SEARCH: {"train.learning_rat": {"low": 1, "high": 2}}}, ["did you mean 'learning_rate'?"]),
    "search of a method": (
        {"cells/0/methods": "oscillation", SEARCH: {"oscillation.strenght": {"low": 1, "high": 2}}},
        ["method 'oscillation': strenght: unknown key; did you mean 'strength'?"],
    ),
    "what others call a setting": ({"base/train/lr": 0.1}, ["train.lr: unknown key; did you mean 'learning_rate'?"]),
    "what others call a method": ({"cells/0/methods": "QAT"}, ["unknown method 'QAT'; did you mean 'ste'?"]),
    "float training": ({"cells/0/methods": "float"}, ["method 'float'; did you mean 'none' (float training)? (legal:"]),
    "a number of seeds": (
        {"final/seeds": 3},
        ["final.seeds: 3: write a list, such as [3], which is one seed, or [0, 1, 2], which are 3"],
    ),
    "search of a method that is not there": (
        {SEARCH: {"oscillation.strength": {"low": 1, "high": 2}}},
        ["unknown setting 'oscillation'", "ste, target_bit"],
    ),
}


@pytest.mark.parametrize(("edits", "said"), UNKNOWN_KEYS.values(), ids=UNKNOWN_KEYS)
def test_an_unknown_key_is_refused_with_the_nearest(cli: Cli, edits: Edits, said: list[str]) -> None:
    message = cli.refusal(cli.file(edited(edits)))
    assert all(part in message for part in said), message


def test_an_unknown_key_of_a_search_range_is_refused_with_the_nearest(cli: Cli) -> None:
    message = cli.refusal(cli.file(edited({RATE: {"low": 1e-4, "high": 1e-2, "lgo": True}})))
    assert "train.learning_rate.lgo: unknown key; did you mean 'log'?" in message, message


WITHOUT = {
    "attention": ({"cells/0/methods": "qkr"}, "method 'qkr' needs attention whose products can be reached (timm's"),
    "attention of a stack": ({"cells/0/methods": ["qkr", "ste"]}, "method 'qkr' needs attention"),
    "norms": ({"cells/0/methods": "any_precision"}, "method 'any_precision' needs normalization layers"),
    "attention of a convolutional network": (
        {"cells/0/methods": "qkr", "base/model": {"name": "resnet18", "width": 4}},
        "method 'qkr' needs attention",
    ),
}


@pytest.mark.parametrize(("edits", "said"), WITHOUT.values(), ids=WITHOUT)
def test_a_cell_whose_model_lacks_what_a_method_requires_is_refused(cli: Cli, edits: Edits, said: str) -> None:
    message = cli.refusal(cli.file(edited(edits)))
    name = edited(edits)["base"]["model"]["name"]
    assert said in message
    assert message.endswith(f", and model '{name}' has none")
    assert message.startswith("cell ")


def test_a_cell_whose_model_has_what_a_method_requires_is_accepted(cli: Cli) -> None:
    model = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2}
    cli.accepted(cli.file(edited({"cells/0/methods": ["qkr", "ste"], "base/model": model})))


@pytest.mark.parametrize(
    "methods", [["ste", "lsq"], ["statsq", "freezing"], ["aoq", "dampening"], ["satnl", "oscillation"]]
)
def test_methods_that_cannot_work_together_are_refused_before_anything_starts(cli: Cli, methods: list[str]) -> None:
    message = cli.refusal(cli.file(edited({"cells/0/methods": methods})))
    assert message.startswith(f"cell {'+'.join(methods)},target_bit=2: methods {methods}: ")
    assert len(message.splitlines()) == 1


def test_a_method_that_replaces_layers_goes_first(cli: Cli) -> None:
    model = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2}
    message = cli.refusal(cli.file(edited({"cells/0/methods": ["ste", "qkr"], "base/model": model})))
    assert "'qkr' replaces layers that 'ste' would hold on to; name 'qkr' first" in message


NAMES = {
    "method": ({"cells/0/methods": "sta"}, ["unknown method 'sta'; did you mean 'ste'?", "oscillation, "]),
    "method in a stack": ({"cells/0/methods": ["ste", "oscilation"]}, ["did you mean 'oscillation'?"]),
    "model": (
        {"base/model/name": "mlp"},
        ["unknown model 'mlp'; did you mean 'mlp5'? (legal: edsr, hf, llama, mlp5"],
    ),
    "model in a grid": ({"grid": {"model.name": ["mpl5"]}}, ["unknown model 'mpl5'; did you mean 'mlp5'?"]),
    "data set": ({"base/data/name": "digit"}, ["unknown data set 'digit'; did you mean 'digits'? (legal: cifar10"]),
    "sampler": ({"sampler": "tep"}, ["unknown sampler 'tep'; did you mean 'tpe'? (legal: gp, grid, nsgaii"]),
    "pruner": ({"pruner": "medain"}, ["unknown pruner 'medain'; did you mean 'median'? (legal: hyperband"]),
    "stack as it is shown": ({"cells/0/methods": "ste+freezing"}, ["'ste+freezing'; did you mean '[ste, freezing]'?"]),
    "objective": ({"objective": "taget"}, ["objective 'taget' is unknown; did you mean 'target'?", "val/loss_w2"]),
    "objective, bits": ({"objective": "val/acc_w9"}, ["objective 'val/acc_w9' is unknown", "val/acc_w2 to val/acc_w8"]),
    "test split": ({"objective": "test/acc_w2"}, ["objective 'test/acc_w2' is unknown"]),
    "timm": ({"base/model": {"name": "timm:resnt18"}}, ["unknown timm model 'resnt18'; did you mean 'resnet18'?"]),
    "timm alone": ({"base/model": {"name": "timm"}}, ["name: 'timm': not of the form timm:<name>"]),
    "no model": ({"base/model": GONE}, ["model: missing"]),
    "no model name": ({"base/model": {"width": 3}}, ["names no model (name: edsr | hf | llama | mlp5 | resnet18"]),
    "no method name": ({"cells/0/methods": [{"strength": 3}]}, ["names no method (name: ", " | none | "]),
    "optimizer": (
        {"base/train/optimizer": "adma"},
        ["train.optimizer: 'adma'", "did you mean 'adam'? (legal: adam, adamw, sgd)"],
    ),
    "init": ({"base/model/init": "pretraned"}, ["init: 'pretraned': none of scratch", "did you mean 'pretrained'?"]),
    "init of a suffix": (
        {"base/model/init": "checkpoint:a.ckpt"},
        ["init: 'checkpoint:a.ckpt': a checkpoint is a path"],
    ),
    "sweep": ({"name": "a/b"}, ["name: 'a/b'"]),
    "sweep that climbs": ({"name": ".."}, ["name: '..'"]),
}


@pytest.mark.parametrize(("edits", "said"), NAMES.values(), ids=NAMES)
def test_an_unknown_name_is_refused_with_the_nearest(cli: Cli, edits: Edits, said: list[str]) -> None:
    message = cli.refusal(cli.file(edited(edits)))
    assert all(part in message for part in said), message


def test_a_misspelt_deploy_method_is_refused_with_the_nearest(cli: Cli) -> None:
    message = cli.refusal(cli.file(edited({"base/deploy/methods": ["rnt"]})))
    assert "'rnt'; did you mean 'rtn'?" in message, message


MONITORED = {
    "misspelt": (
        "bn_restimation",
        "unknown deploy method 'bn_restimation'; did you mean 'bn_reestimation'? (legal: adaround, any_",
    ),
    "without a deployment": ("lsq", "method 'lsq' has no deployment of its own (legal: rtn, adaround, any_precision"),
    "setting": ({"name": "bn_reestimation", "batch": 3}, "batch: unknown key; did you mean 'batches'? (legal: batches"),
}


@pytest.mark.parametrize(("deploy", "said"), MONITORED.values(), ids=MONITORED)
def test_a_monitored_method_that_cannot_deploy_is_refused(cli: Cli, deploy: object, said: str) -> None:
    message = cli.refusal(cli.file(edited({"base/monitor": {"deploy": deploy}})))
    assert message.startswith("base.monitor.deploy: ")
    assert said in message


TYPES = {
    "word for a number": ({"base/train/epochs": "many"}, ["train.epochs: 'many'", "valid integer"]),
    "fraction for a whole number": ({"base/train/epochs": 2.5}, ["train.epochs: 2.5", "valid integer"]),
    "list for a section": ({"base/train": [1]}, ["train is a value, not a section"]),
    "value for a section": ({"base/deploy": "keep"}, ["deploy: 'keep'"]),
    "value for base": ({"base": 3}, ["base: 3"]),
    "mapping for a list": ({"cells": {"a": 1}}, ["cells: {'a': 1}"]),
    "value for a grid list": ({"cells/0/grid/target_bit": 3}, ["cells.0.grid.target_bit: 3"]),
    "value for a search range": ({RATE: 0.1}, ["cells.0.search.train.learning_rate: 0.1", "{low: ..., high:"]),
    "value for seeds": ({"final/seeds": 3}, ["final.seeds: 3"]),
    "fraction for a seed": ({"final/seeds": [0.5]}, ["final.seeds.0: 0.5", "valid integer"]),
    "word for a model": ({"base/model": "mlp5"}, ["model: 'mlp5'"]),
    "number for a method": ({"cells/0/methods": [3]}, ["cells.0.methods.0: 3"]),
    "number for a name": ({"name": 3}, ["name: 3", "valid string"]),
    "negative strength": (
        {"cells/0/methods": [{"name": "oscillation", "strength": -3}]},
        ["'oscillation': strength: -3: Input should be greater than or equal to 0"],
    ),
    "infinite": ({"base/train/clip_norm": math.inf}, ["train.clip_norm: inf", "finite"]),
    "too few workers": ({"workers": 0}, ["workers: 0", "greater than or equal to 1"]),
    "negative trials": ({"tune/trials": -1}, ["tune.trials: -1", "greater than or equal to 0"]),
    "device": ({"base/runtime": {"device": "gpu"}}, ["runtime.device: 'gpu'", "cuda"]),
    "scale": (
        {"base/deploy/scale": "keepstep"},
        ["deploy.scale: 'keepstep'", "did you mean 'keep_step'? (legal: keep_step, keep_range, recalibrate)"],
    ),
}


@pytest.mark.parametrize(("edits", "said"), TYPES.values(), ids=TYPES)
def test_a_value_of_the_wrong_kind_is_refused(cli: Cli, edits: Edits, said: list[str]) -> None:
    message = cli.refusal(cli.file(edited(edits)))
    assert all(part in message for part in said), message


COERCED: list[tuple[str, Any]] = [
    ("base/train/epochs", True),
    ("base/train/epochs", "3"),
    ("tune/trials", True),
    ("tune/trials", "2"),
    ("final/seeds", [True]),
    ("final/seeds", ["0"]),
]


@pytest.mark.parametrize(("path", "value"), COERCED, ids=str)
def test_a_boolean_or_a_text_is_no_number(cli: Cli, path: str, value: Any) -> None:
    assert path.rpartition("/")[2] in cli.refusal(cli.file(edited({path: value})), "--dry-run")


@pytest.mark.parametrize("bits", [1, 0, 40, -2, 2.5, True, "two"])
@pytest.mark.parametrize(
    ("path", "field"),
    [("cells/0/grid/target_bit", "target_bit"), ("base/deploy/bits", "deploy.bits.0"), ("base/watch_bit", "watch_bit")],
)
def test_impossible_bits_are_refused(cli: Cli, path: str, field: str, bits: object) -> None:
    value = bits if path.endswith("watch_bit") else [bits]
    message = cli.refusal(cli.file(edited({path: value})))
    legal = "whole numbers from 2 to 8" if field == "watch_bit" else "2 to 8 or w2 to w8"
    assert f"{field}: {bits!r}: no bit-width (legal: {legal}" in message


RANGES = {
    "empty": ({RATE: {"low": 1, "high": 1}}, ["learning_rate", "empty search range: low 1 is not below high 1"]),
    "reversed": ({RATE: {"low": 2, "high": 1}}, ["empty search range: low 2 is not below high 1"]),
    "no choices": ({RATE: []}, ["learning_rate.choices", "at least 1 item"]),
    "log from 0": ({RATE: {"low": 0, "high": 1, "log": True}}, ["a log range cannot start at 0; give low above 0"]),
    "log below 0": ({RATE: {"low": -1, "high": 1, "log": True}}, ["a log range cannot start at -1"]),
    "log in steps": ({RATE: {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, ["a log range has no step"]),
    "whole numbers": ({RATE: {"low": 1.5, "high": 3, "kind": "int"}}, ["kind int wants whole ends, not 1.5 and 3"]),
    "half a range": ({RATE: {"low": 1}}, ["learning_rate.high: missing"]),
    "not a number": ({RATE: {"low": math.nan, "high": 1}}, ["learning_rate.low: nan", "finite"]),
    "outside the setting": ({RATE: {"low": -1, "high": 1}}, ["train.learning_rate: -1.0", "greater than 0"]),
}


@pytest.mark.parametrize(("edits", "said"), RANGES.values(), ids=RANGES)
def test_an_impossible_search_range_is_refused(cli: Cli, edits: Edits, said: list[str]) -> None:
    message = cli.refusal(cli.file(edited(edits)))
    assert all(part in message for part in said), message
