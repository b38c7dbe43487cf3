"""Several mistakes in one sweep file are told at once, each once; keys of another level are told where they belong."""

from typing import Any

import pytest
from cli_bad_input_common import RATE, Edits
from cli_sweep import BASE, GONE, SEARCH, Cli, edited

OTHER: dict[str, Any] = {
    "methods": "oscillation",
    "grid": {"target_bit": [3]},
    "search": {"oscillation.strength": {"low": 1, "high": 2}},
}

MANY: dict[str, tuple[Edits, list[str]]] = {
    "at all levels": (
        {
            "sampller": "tpe",
            "tune": {"trials": "many", "sampler": "tpe"},
            "base/modle": {},
            "base/train/epohs": 3,
            "cells/0/methods": "sta",
            "cells/0/search": {"train.learning_rat": {"low": 1, "high": 2}},
            "cells/1": OTHER | {"set": {"train.batch_size": -1}, "search": {"oscilation.strength": [1]}},
        },
        [
            "cells.0.methods.0: 'sta': unknown method 'sta'; did you mean 'ste'?",
            "tune.trials: 'many'",
            "tune.sampler: unknown key; `sampler` is a key of the sweep file itself, beside `tune` (legal",
            "sampller: unknown key; did you mean 'sampler'?",
            "base: unknown setting 'modle'; did you mean 'model'?",
            "base.train.epohs: unknown key; did you mean 'epochs'?",
            "cell sta,target_bit=2: train.learning_rat: unknown key",
            "cell oscillation,target_bit=3,train.batch_size=-1: unknown setting 'oscilation'",
            "cell oscillation,target_bit=3,train.batch_size=-1: train.batch_size: -1",
        ],
    ),
    "keys that contradict each other": (
        {"final/seeds": [1000, 1000], "storage": "mango", "objective": ["target", "mean"], "pruner": "median"},
        ["storage: 'mango'", "final.seeds: [1000, 1000] names a seed twice", "tune.seed: 1000", "pruner: Optuna"],
    ),
    "of options of Optuna": (
        {
            "sampler": {"name": "tpe", "n_startup_trial": 4},
            "pruner": {"name": "median", "n_warmup_steps": -3, "interval_steps": 0},
            "base/train/epohs": 3,
        },
        [
            "sampler 'tpe': n_startup_trial: unknown key; did you mean 'n_startup_trials'?",
            "pruner 'median': n_warmup_steps: -3",
            "pruner 'median': interval_steps: 0",
            "base.train.epohs",
        ],
    ),
    "of a network and a data set": (
        {"base/model/widht": 8, "cells/1": OTHER | {"set": {"data.normalise": "unit"}}},
        ["model 'mlp5': widht", "data set 'digits': normalise"],
    ),
    "of two methods": (
        {
            "cells/0/methods": {"name": "ste", "strength": 3},
            "cells/1": OTHER | {"search": {"oscillation.strength": {"low": -1, "high": 2}}},
        },
        ["cell ste,target_bit=2: method 'ste': strength: unknown key", "method 'oscillation': strength: -1"],
    ),
    "of base and then of a cell": (
        {"base/train/epohs": 3, "cells/1": OTHER | {"grid": {}, "set": {"target_bit": 3, "watch_bit": 2, "seed": 3}}},
        ["cells.1.set.seed: unknown setting 'seed'; `seed` is a key of `tune`", "base.train.epohs"],
    ),
    "the same in two cells": (
        {"cells/0/set": {"target_bits": 2}, "cells/1": OTHER | {"set": {"target_bits": 2, "lsq.levels": "full"}}},
        [
            "  cells.0.set.target_bits: unknown setting 'target_bits'; did you mean 'target_bit'?",
            "  cells.1.set.target_bits: unknown setting 'target_bits'; did you mean 'target_bit'?",
            "  cells.1.set.lsq.levels: unknown setting 'lsq': this cell has no such method",
        ],
    ),
    "of the grid of all cells": (
        {"grid": {"epochs": [1, 2], "ste.x": [1]}, "cells/1": OTHER},
        ["  grid.epochs: unknown setting 'epochs'", "  grid.ste.x: unknown setting 'ste': cells.1 has no such method"],
    ),
}


@pytest.mark.parametrize(("edits", "said"), MANY.values(), ids=MANY)
def test_all_mistakes_are_told_at_once(cli: Cli, edits: Edits, said: list[str]) -> None:
    first, *lines = cli.refusal(cli.file(edited(edits))).splitlines()
    assert first.endswith(f": {len(said)} mistakes"), (first, lines)
    assert len(lines) == len(said)
    assert all(any(part in line for line in lines) for part in said), lines
    assert all(line.startswith("  ") for line in lines)


def test_of_many_mistakes_ten_are_told(cli: Cli) -> None:
    lines = cli.refusal(cli.file({**BASE, **{f"key{number}": 1 for number in range(13)}})).splitlines()
    assert len(lines) == 12
    assert lines[0].endswith("sweep.yaml: 13 mistakes")
    assert lines[-1] == "  and 3 more"


FOLLOWING: dict[str, Edits] = {
    "a needed key misspelt": {"cells/0/grid": {"target_bt": [2, 3]}},
    "of base": {"base/models": {"name": "mlp5"}, "base/model": GONE},
    "no list in a grid": {"cells/0/grid": {"target_bit": 3}},
    "searched range": {RATE: {"low": 3, "high": 1}},
    "searched method": {SEARCH: {"oscillation.strength": [1, 2]}},
    "points": {"base/deploy/bits": [2, 9], "objective": "val/acc_w3"},
    "wrong at every extreme": {RATE: {"low": -2, "high": -1}},
    "base": {"base": 3},
    "section": {"base/train": [1]},
    "two equal cells": {"cells/1": BASE["cells"][0]},
}


@pytest.mark.parametrize("edits", FOLLOWING.values(), ids=FOLLOWING)
def test_what_follows_from_a_mistake_is_no_further_one(cli: Cli, edits: Edits) -> None:
    assert len(cli.refusal(cli.file(edited(edits))).splitlines()) == 1


ELSEWHERE: dict[str, tuple[Edits, str]] = {
    "sampler": (
        {"tune/sampler": "tpe"},
        "tune.sampler: unknown key; `sampler` is a key of the sweep file itself, beside",
    ),
    "pruner": ({"tune/pruner": "none"}, "`pruner` is a key of the sweep file itself, beside `tune` (legal: seed"),
    "objective": ({"final/objective": "mean"}, "`objective` is a key of the sweep file itself, beside `final` (legal"),
    "trials": ({"trials": 3}, "trials: unknown key; `trials` is a key of `tune` (legal: base, cells"),
    "section": ({"train": {"epochs": 1}}, "train: unknown key; `train` is a key of `base` (legal"),
    "epochs": ({"base/epochs": 3}, "base: unknown setting 'epochs'; `epochs` is a key of `base.train` (legal"),
    "search": ({"base/search": {}}, "base: unknown setting 'search'; `search` is a key of an entry of `cells` (legal"),
    "seed": ({"seed": 3}, "seed: unknown key; `seed` is a key of `tune` (legal"),
    "sweep": ({"base/train/trials": 3}, "base.train.trials: unknown key; `trials` is a key of `tune` (legal"),
    "two": ({"range": "mse"}, "`range` is a key of `base.quantizer` and `base.activations` (legal"),
    "cell": ({"cells/0/target_bit": 3}, "cells.0.target_bit: unknown key; `target_bit` is a key of `base` (legal"),
    "set": (
        {"cells/0/set": {"epochs": 3}},
        "cells.0.set.epochs: unknown setting 'epochs'; did you mean 'train.epochs'? (legal",
    ),
    "grid": (
        {"cells/0/grid/sampler": ["tpe"]},
        "cells.0.grid.sampler: unknown setting 'sampler'; `sampler` is a key of the sweep file itself (legal",
    ),
    "both": ({"cells/0/set": {"target_bit": 3}}, "cells.0: target_bit is in two of grid, set and search"),
    "of a method": ({"cells/0/methods": {"name": "ste", "epochs": 3}}, "'ste': epochs: unknown key; `epochs` is a key"),
}


@pytest.mark.parametrize(("edits", "said"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_key_of_another_level_is_told_where_it_belongs(cli: Cli, edits: Edits, said: str) -> None:
    assert said in cli.refusal(cli.file(edited(edits)))
