"""Bad input is refused before anything starts: field, value, what is legal, and the nearest spelling.

Most cases run in this process; the last section types a representative dozen at the real command line.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from cli_sweep import BASE, GONE, SEARCH, Cli, edited

from harness import study, sweep
from harness.errors import UserError
from harness.launch import main

Edits = dict[str, Any]
RATE = f"{SEARCH}/train.learning_rate"


UNKNOWN_KEYS = {
    "top level": ({"sampller": "tpe"}, ["sampller: unknown key; did you mean 'sampler'?", "(legal: base, cells"]),
    "base": ({"base/modle": {}}, ["base: unknown setting 'modle'; did you mean 'model'?", "legal: data, deploy"]),
    "base, seed": ({"base/seed": 3}, ["base: unknown setting 'seed'"]),
    "train": ({"base/train/epohs": 3}, ["train.epohs: unknown key; did you mean 'epochs'?", "batch_size"]),
    "deploy": ({"base/deploy/bit": [2]}, ["deploy.bit: unknown key; did you mean 'bits'?", "methods, scale"]),
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


NAMES = {
    "method": ({"cells/0/methods": "sta"}, ["unknown method 'sta'; did you mean 'ste'?", "oscillation, ste)"]),
    "method in a stack": ({"cells/0/methods": ["ste", "oscilation"]}, ["did you mean 'oscillation'?"]),
    "model": ({"base/model/name": "mlp"}, ["unknown model 'mlp'; did you mean 'mlp5'? (legal: mlp5, resnet18"]),
    "model in a grid": ({"grid": {"model.name": ["mpl5"]}}, ["unknown model 'mpl5'; did you mean 'mlp5'?"]),
    "data set": ({"base/data/name": "digit"}, ["unknown data set 'digit'; did you mean 'digits'? (legal: cifar10"]),
    "sampler": ({"sampler": "tep"}, ["unknown sampler 'tep'; did you mean 'tpe'? (legal: gp, grid, nsgaii"]),
    "pruner": ({"pruner": "medain"}, ["unknown pruner 'medain'; did you mean 'median'? (legal: hyperband"]),
    "objective": ({"objective": "taget"}, ["objective 'taget' is unknown; did you mean 'target'?", "val/loss_w2"]),
    "objective, bits": ({"objective": "val/acc_w9"}, ["objective 'val/acc_w9' is unknown", "val/acc_w2 to val/acc_w8"]),
    "test split": ({"objective": "test/acc_w2"}, ["objective 'test/acc_w2' is unknown"]),
    "timm": ({"base/model": {"name": "timm:resnt18"}}, ["unknown timm model 'resnt18'; did you mean 'resnet18'?"]),
    "timm alone": ({"base/model": {"name": "timm"}}, ["model name 'timm' is not of the form timm:<name>"]),
    "no model": ({"base/model": GONE}, ["model: missing"]),
    "no model name": ({"base/model": {"width": 3}}, ["names no model (name: mlp5 | resnet18"]),
    "no method name": ({"cells/0/methods": [{"strength": 3}]}, ["names no method (name: lsq | none"]),
    "optimizer": ({"base/train/optimizer": "adma"}, ["train.optimizer: 'adma'", "'adam', 'adamw' or 'sgd'"]),
    "init": ({"base/model/init": "pretraned"}, ["init 'pretraned' is none of scratch", "did you mean 'pretrained'?"]),
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
    "scale": ({"base/deploy/scale": "keepstep"}, ["deploy.scale: 'keepstep'", "'keep_step', 'keep_range' or"]),
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
    assert f"{field}: {bits!r}: no bit-width (legal: whole numbers from 2 to 8)" in message


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
    "outside the knob": ({RATE: {"low": -1, "high": 1}}, ["train.learning_rate: -1.0", "greater than 0"]),
}


@pytest.mark.parametrize(("edits", "said"), RANGES.values(), ids=RANGES)
def test_an_impossible_search_range_is_refused(cli: Cli, edits: Edits, said: list[str]) -> None:
    message = cli.refusal(cli.file(edited(edits)))
    assert all(part in message for part in said), message


SWEEPS = {
    "grid without values": ({"cells/0/grid/target_bit": []}, ["an empty list of values leaves no run at all"]),
    "no cells": ({"cells": []}, ["cells: []"]),
    "two equal cells": ({"cells/1": BASE["cells"][0]}, ["two of them are ste,target_bit=2"]),
    "value twice in a grid": ({"cells/0/grid/target_bit": [2, 2]}, ["two of them are ste,target_bit=2"]),
    "no scale": ({"base/deploy/scale": GONE}, ["deploy.scale: missing"]),
    "no deploy": ({"base/deploy": GONE}, ["deploy: missing"]),
    "no deploy bits": ({"base/deploy/bits": []}, ["deploy.bits: []"]),
    "no search": ({SEARCH: {}}, ["cell ste,target_bit=2: nothing to search", "2 trials", "tune.trials to 0"]),
    "search without trials": ({"tune/trials": 0}, ["search needs tune.trials of at least 1"]),
    "tuning seed among finals": ({"tune/seed": 0}, ["tune.seed: 0 is also a final seed"]),
    "seed twice": ({"final/seeds": [0, 0]}, ["final.seeds: [0, 0] names a seed twice"]),
    "method twice": ({"cells/0/methods": ["ste", "ste"]}, ["methods: ['ste', 'ste'] names a method twice"]),
    "ste without target": (
        {"cells/0/grid": {}, "cells/0/set": {"watch_bit": 2}},
        ["cell ste,watch_bit=2: methods: 'ste' prepares for a bit-width; set target_bit to 2 to 8"],
    ),
    "float run without watch": (
        {"cells/0/methods": "none", "cells/0/grid": {}},
        ["a float run (no target_bit) names the bits it is watched at: watch_bit: 2 to 8"],
    ),
    "pruner of two objectives": (
        {"objective": ["target", "mean"], "pruner": "median"},
        ["pruner: Optuna cannot prune trials of several objectives"],
    ),
    "target searched": (
        {SEARCH: {"target_bit": [2, 3]}, "cells/0/grid": {}},
        ["accuracy at the target bit cannot compare trials of different target_bit", "mean, worst"],
    ),
    "sampler option": ({"sampler": {"name": "tpe", "n_startup": 3}}, ["sampler 'tpe'", "'n_startup'"]),
    "static sampler option": ({"sampler": {"name": "random", "x": 4}}, ["'random' takes no options, got ['x']"]),
    "sampler seed": ({"sampler": {"name": "tpe", "seed": 4}}, ["sampler 'tpe'", "'seed'"]),
    "pruner option": ({"pruner": {"name": "median", "n_warmup": 4}}, ["pruner 'median'", "'n_warmup'"]),
    "pruner without its option": ({"pruner": "percentile"}, ["pruner 'percentile'", "'percentile'"]),
    "no name": ({"name": GONE}, ["name: missing"]),
}


@pytest.mark.parametrize(("edits", "said"), SWEEPS.values(), ids=SWEEPS)
def test_a_sweep_that_contradicts_itself_is_refused(cli: Cli, edits: Edits, said: list[str]) -> None:
    message = cli.refusal(cli.file(edited(edits)))
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"final/seeds": [-1]}, "final.seeds.0: -1"),
        ({"final/seeds": [2**32]}, "final.seeds.0: 4294967296"),
        ({SEARCH: {"seed": {"low": 1, "high": 9, "kind": "int"}}}, "'seed'"),
        ({SEARCH: {"methods": ["ste", "none"]}}, "'methods'"),
        ({"cells/0/grid/seed": [1, 2]}, "'seed'"),
        ({"cells/0/set": {"phase": "tune"}}, "'phase'"),
        ({SEARCH: {"target_bit": [2, 3]}, "objective": "mean"}, "target_bit"),
        ({"cells/0/set": {"target_bit": 4}}, "target_bit"),
        ({"objective": "val/acc_w7"}, "val/acc_w7"),
        ({"sampler": {"name": "tpe", "n_startup_trials": "few"}}, "n_startup_trials"),
        ({"base/model/init": "pretrained"}, "pretrained"),
        ({"cells/0/methods": ["ste", "lsq"]}, "lsq"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_sweep_that_cannot_work_is_refused(cli: Cli, edits: Edits, said: str) -> None:
    assert said in cli.refusal(cli.file(edited(edits)), "--dry-run")


SETS = {
    "no equals": ("foo", "--set 'foo': write key=value"),
    "no key": ("=3", "--set '=3': write key=value"),
    "below a value": ("tune.trials.x=3", "--set 'tune.trials.x=3': trials is a value, not a section"),
    "outside a list": ("cells.7=ste", "--set 'cells.7=ste': the list has places 0 to 0, not '7'"),
    "word in a list": ("cells.x=ste", "--set 'cells.x=ste': the list has places 0 to 0, not 'x'"),
    "broken YAML": ("tune.trials=[1", "not YAML"),
    "unknown key": ("sampelr=tpe", "sampelr: unknown key; did you mean 'sampler'?"),
    "no value": ("tune.trials=", "tune.trials: None"),
}


@pytest.mark.parametrize(("override", "said"), SETS.values(), ids=SETS)
def test_a_bad_set_is_refused(cli: Cli, override: str, said: str) -> None:
    assert said in cli.refusal(cli.file(BASE), "--set", override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cells.7.methods=ste", "cells.7.methods=ste"),
        ("cells.x.methods=ste", "cells.x.methods=ste"),
        ("tune.trials=[1", "--set 'tune.trials=[1'"),
    ],
)
def test_a_bad_set_is_refused_by_name(cli: Cli, override: str, said: str) -> None:
    assert said in cli.refusal(cli.file(BASE), "--set", override)


def test_a_set_replaces_a_key(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    cli.accepted(cli.file(BASE), "--set", "tune.trials=7", "--set", "final.seeds=[4, 5]")
    assert "2 cells, 14 trials, 4 finals: 18 runs" in capsys.readouterr().out


def test_a_set_of_a_run_setting_reaches_base(cli: Cli) -> None:
    assert "train.epochs: 'x'" in cli.refusal(cli.file(BASE), "--set", "train.epochs=x")


TEXTS = {
    "duplicate key": ("name: a\nbase: {}\nname: b\n", "line 3: key 'name' stands twice in the same section"),
    "duplicate key below": ("name: a\nbase:\n  train:\n    epochs: 1\n    epochs: 2\n", "line 5: key 'epochs' stands"),
    "not YAML": ("name: [a\n", "not YAML"),
    "tab": ("name: a\nbase:\n\ttrain: 3\n", "line 3: not YAML"),
    "a list": ("- a\n- b\n", "expected keys and values, found list"),
    "empty": ("", "expected keys and values, found NoneType"),
    "key that is no text": ("name: a\n3: b\n", "line 2: key 3 is not text"),
}


@pytest.mark.parametrize(("text", "said"), TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_no_sweep_is_refused_with_its_line(cli: Cli, text: str, said: str) -> None:
    file = cli.file(text)
    message = cli.refusal(file)
    assert said in message
    assert message.startswith(f"{file}: ")


def test_a_float_without_a_point_is_a_number(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    text = cli.file(BASE).read_text().replace("low: 0.0001", "low: 1e-4").replace("high: 0.01", "high: 1e-2")
    assert "1e-4" in text
    cli.accepted(cli.file(text))
    assert "train.learning_rate in [0.0001, 0.01] (log)" in capsys.readouterr().out


def test_a_missing_file_is_refused_and_its_neighbours_named(cli: Cli) -> None:
    cli.file(BASE)
    message = cli.refusal(cli.folder / "swep.yaml")
    assert message == f"{cli.folder / 'swep.yaml'}: no such file (there: sweep.yaml)"


def test_binary_is_refused(cli: Cli) -> None:
    file = cli.folder / "sweep.yaml"
    file.write_bytes(b"\x80\x81\xff")
    assert f"{file}: cannot be read" in cli.refusal(file)


ONE_LINE = {
    "method": {"cells/0/methods": "sta"},
    "bits": {"base/deploy/bits": [40]},
    "log range": {RATE: {"low": 0, "high": 1, "log": True}},
    "seed": {"final/seeds": [0.5]},
}


@pytest.mark.parametrize("edits", ONE_LINE.values(), ids=ONE_LINE)
def test_one_mistake_gives_one_line(cli: Cli, edits: Edits) -> None:
    assert len(cli.refusal(cli.file(edited(edits))).splitlines()) == 1


# Cluster, profile, root


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_a_profile_is_for_slurm(cli: Cli, cluster: str) -> None:
    profile = cli.file("gpus: 1\n", "profile.yaml")
    message = cli.refusal(cli.file(BASE), "--cluster", cluster, "--profile", profile)
    assert message == f"--profile is for --cluster slurm, not {cluster}"


PROFILES = {
    "unknown key": ("partitoin: gpu\n", ["partitoin: unknown key; did you mean 'partition'?", "memory_gb"]),
    "time": ("time: 4 hours\n", ["time: '4 hours': not a Slurm time (legal: minutes, hours:minutes:seconds"]),
    "gpus": ("gpus: -1\n", ["gpus: -1", "greater than or equal to 0"]),
    "no mapping": ("- a\n", ["expected keys and values, found list"]),
}


@pytest.mark.parametrize(("text", "said"), PROFILES.values(), ids=PROFILES)
def test_a_bad_profile_is_refused(cli: Cli, text: str, said: list[str]) -> None:
    file = cli.file(text, "profile.yaml")
    message = cli.refusal(cli.file(BASE), "--cluster", "slurm", "--profile", file)
    assert str(file) in message
    assert all(part in message for part in said), message


def test_a_missing_profile_is_refused(cli: Cli) -> None:
    message = cli.refusal(cli.file(BASE), "--cluster", "slurm", "--profile", cli.folder / "none.yaml")
    assert "none.yaml: no such file" in message


def test_slurm_without_sbatch_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cli.folder))
    assert "--cluster slurm: sbatch is not on this machine" in cli.refusal(cli.file(BASE), "--cluster", "slurm")


@pytest.mark.parametrize("workers", ["0", "-1", "x"])
def test_workers_are_counted_from_one(cli: Cli, workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(cli.file(BASE)), "--workers", workers, "--root", str(cli.root)])
    assert ended.value.code == 2
    assert "argument --workers:" in capsys.readouterr().err
    assert not cli.root.exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_unusable_root_is_refused(cli: Cli, below: str) -> None:
    (cli.folder / "file").touch()  # also root, who may write anywhere, cannot make a folder of a file
    root = cli.folder / "file" / below
    with pytest.raises(UserError, match=r"^--root '.*file.*': cannot write there: "):
        main([str(cli.file(BASE)), "--cluster", "debug", "--root", str(root)])
    assert (cli.folder / "file").is_file()


# A sweep edited after it ran


CHANGES = {
    "base.train.epochs": {"base/train/epochs": 2},
    "base.deploy.bits": {"base/deploy/bits": [2, 4, 8]},
    "cells": {SEARCH: {"train.learning_rate": {"low": 0.0001, "high": 0.1, "log": True}}},
    "sampler.name": {"sampler": "qmc"},
    "objective": {"objective": "mean"},
    "tune.seed": {"tune/seed": 1001},
    "tune.trials": {"tune/trials": 1},
    "final.seeds": {"final/seeds": [1]},
}


@pytest.mark.parametrize(("key", "edits"), CHANGES.items(), ids=CHANGES)
def test_a_sweep_edited_after_it_ran_is_refused_and_the_key_named(cli: Cli, key: str, edits: Edits) -> None:
    study.open_sweep(sweep.read(cli.file(BASE)), cli.root)
    before = {path: path.read_bytes() for path in cli.root.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"differs in: {key}\. Only tune\.trials and final\.seeds may grow"):
        main([str(cli.file(edited(edits))), "--cluster", "debug", "--root", str(cli.root)])
    assert {path: path.read_bytes() for path in cli.root.rglob("*") if path.is_file()} == before


def test_all_changed_keys_are_named(cli: Cli) -> None:
    study.open_sweep(sweep.read(cli.file(BASE)), cli.root)
    edits = {"base/train/epochs": 2, "tune/seed": 7}
    with pytest.raises(UserError, match=r"differs in: base\.train\.epochs, tune\.seed\."):
        main([str(cli.file(edited(edits))), "--cluster", "debug", "--root", str(cli.root)])


@pytest.mark.parametrize(
    "edits",
    [
        {"tune/trials": 3},
        {"final/seeds": [0, 1]},
        {"final/seeds": [5, 0]},
        {"workers": 3},
        {"max_retries": 4},
        {"base/runtime": {"device": "cpu", "threads": 1}},
        {"base/data/root": "/elsewhere"},
        {"tune/trials": 3, "final/seeds": [0, 1, 2], "workers": 1},
    ],
    ids=str,
)
def test_a_sweep_may_grow(cli: Cli, edits: Edits) -> None:
    study.open_sweep(sweep.read(cli.file(BASE)), cli.root)
    study.open_sweep(sweep.read(cli.file(edited(edits))), cli.root)


# Files that a sweep names


def images(root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """An image folder of 10 training images and 1 test image a class."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for split, count in (("train", 10), ("test", 1)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def image_sweep(root: Path | None) -> dict[str, Any]:
    return edited({"base/data": {"name": "image_folder", **({"root": str(root)} if root else {})}})


def test_a_corrupt_image_is_named_and_refused(cli: Cli) -> None:
    damaged = images(cli.folder / "photos") / "train" / "dog" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert f"cannot decode {damaged}" in cli.refusal(cli.file(image_sweep(cli.folder / "photos")))


def test_an_empty_class_folder_is_named_and_refused(cli: Cli) -> None:
    root = images(cli.folder / "photos")
    for file in (root / "train" / "cat").iterdir():
        file.unlink()
    assert f"{root / 'train' / 'cat'} holds no images" in cli.refusal(cli.file(image_sweep(root)))


def test_a_missing_data_root_says_what_belongs_there(cli: Cli) -> None:
    message = cli.refusal(cli.file(image_sweep(cli.folder / "nowhere")))
    assert f"data.root: nothing is at {cli.folder / 'nowhere'}: image_folder reads a folder with train/" in message
    message = cli.refusal(cli.file(image_sweep(None)))
    assert "data.root is not set" in message
    assert "--set data.root=PATH" in message


def test_cifar10_is_never_fetched_unasked(cli: Cli) -> None:
    data = {"name": "cifar10", "root": str(cli.folder)}
    message = cli.refusal(cli.file(edited({"base/data": data})))
    assert "cifar-10-batches-py" in message
    assert "download: true" in message


@pytest.mark.parametrize("init", ["checkpoint:/no/such.pt", "/no/such.pt"])
def test_a_missing_initial_checkpoint_is_refused(cli: Cli, init: str) -> None:
    assert "/no/such.pt" in cli.refusal(cli.file(edited({"base/model/init": init})))


# The same at the real command line

COMMANDS: dict[str, tuple[Edits | str, list[str], list[str]]] = {
    "unknown key": ({"sampller": "tpe"}, [], ["sampller", "did you mean 'sampler'"]),
    "duplicate key": ("name: a\nname: b\n", [], ["line 2", "'name' stands twice"]),
    "model": ({"base/model/name": "mlp"}, [], ["'mlp'", "did you mean 'mlp5'", "resnet18"]),
    "data set": ({"base/data/name": "digit"}, [], ["'digit'", "did you mean 'digits'", "cifar10"]),
    "objective": ({"objective": "taget"}, [], ["'taget'", "did you mean 'target'"]),
    "bits": ({"cells/0/grid/target_bit": [40]}, [], ["target_bit: 40", "2 to 8"]),
    "wrong type": ({"base/train/epochs": "many"}, [], ["train.epochs: 'many'"]),
    "no run": ({"cells/0/grid/target_bit": []}, [], ["leaves no run at all"]),
    "set": ({}, ["--set", "foo"], ["--set 'foo'"]),
    "profile": ({}, ["--profile", "p.yaml"], ["--profile is for --cluster slurm, not local"]),
    "knob": ({"cells/0/methods": [{"name": "lsq", "levls": "full"}]}, [], ["levls", "did you mean 'levels'"]),
    "data root": ({"base/data": {"name": "image_folder", "root": "nowhere"}}, [], ["nothing is at nowhere"]),
}


@pytest.mark.parametrize(("content", "arguments", "said"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_exits_2_with_one_line(
    cli: Cli, content: Edits | str, arguments: list[str], said: list[str]
) -> None:
    file = cli.file(content if isinstance(content, str) else edited(content))
    ended = cli.run(file, *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert all(part in ended.stderr for part in said), ended.stderr
    assert not cli.root.exists()
