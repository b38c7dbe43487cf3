"""Bad input is refused before anything starts: field, value, what is legal, and the nearest spelling.

All in this process; tests/cli/test_cli_bad_input_files.py carries out whole commands.
"""

import pytest
from cli_bad_input_common import RATE, Edits
from cli_sweep import BASE, GONE, SEARCH, Cli, edited

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
        ["target_bit is missing: the bit-width that methods train for", "float training has none", "watch_bit: 2 to 8"],
    ),
    "pruner of two objectives": (
        {"objective": ["target", "mean"], "pruner": "median"},
        ["pruner: Optuna cannot prune trials of several objectives"],
    ),
    "target searched": (
        {SEARCH: {"target_bit": [2, 3]}, "cells/0/grid": {}},
        ["accuracy at the target bit cannot compare trials of different target_bit", "mean, worst"],
    ),
    "sampler option": (
        {"sampler": {"name": "tpe", "n_startup": 3}},
        ["sampler 'tpe': n_startup: unknown key; did you mean 'n_startup_trials'? (legal: consider_endpoints"],
    ),
    "static sampler option": ({"sampler": {"name": "random", "x": 4}}, ["'random' takes no options, got ['x']"]),
    "sampler seed": ({"sampler": {"name": "tpe", "seed": 4}}, ["sampler 'tpe': seed: 4: use tune.seed"]),
    "static sampler seed": ({"sampler": {"name": "qmc", "seed": 4}}, ["sampler 'qmc': seed: 4: use tune.seed"]),
    "pruner option": (
        {"pruner": {"name": "median", "n_warmup": 4}},
        ["pruner 'median': n_warmup: unknown key; did you mean 'n_warmup_steps'?"],
    ),
    "pruner without its option": ({"pruner": "percentile"}, ["pruner 'percentile': percentile: missing"]),
    "option of no pruner": ({"pruner": {"name": "none", "n_min_trials": 2}}, ["pruner 'none': n_min_trials"]),
    "no name": ({"name": GONE}, ["name: missing"]),
}


def test_a_mistake_of_all_cells_is_said_to_be_in_base(cli: Cli) -> None:
    assert cli.refusal(cli.file(edited({"base/train/epoch": 5}))).startswith("base.train.epoch: unknown key; did you")
    assert cli.refusal(cli.file(edited({"base/train/epochs": "x"}))).startswith("base.train.epochs: 'x'")
    of_cell = cli.refusal(cli.file(edited({"cells/0/set": {"train.epoch": 5}})))
    assert of_cell.startswith("cell ste,target_bit=2,train.epoch=5: train.epoch: unknown key")
    searched = {"train.learning_rate": {"low": -1, "high": 2}}
    assert cli.refusal(cli.file(edited({SEARCH: searched}))).startswith(
        "cell ste,target_bit=2: train.learning_rate: -1"
    )


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
    "duplicate key": ("name: a\nbase: {}\nname: b\n", "line 3: key 'name' appears twice in the same section"),
    "duplicate key below": ("name: a\nbase:\n  train:\n    epochs: 1\n    epochs: 2\n", "line 5: key 'epochs' appears"),
    "not YAML": ("name: [a\n", "not YAML"),
    "an item out of line": ("cells:\n  - methods: ste\n   - methods: lsq\n", "line 3: not YAML: expected <block end>"),
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
