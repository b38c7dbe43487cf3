"""What shortens a paper table: epochs by hand on made-up records, and what the committed ones have."""

import json

import pytest
import table_levers
from table_levers import METHODS, RESULTS, Pruning, Run, Speed, epochs_left, levers, pruning_of, runs, shares

SPEC = {
    "base": {"train": {"epochs": 100}},
    "cells": [{"methods": "none"}, {"methods": "ste", "grid": {"target_bit": [2, 3, 4]}}],
    "tune": {"trials": 12},
    "final": {"seeds": [0, 1, 2]},
    "pruner": {"name": "median", "n_startup_trials": 4, "n_warmup_steps": 10},
}
ENDED = [
    Run("ste", "tune", 15, 30),
    Run("ste", "tune", 30, 30),
    Run("ste", "final", 18, 30),
    Run("none", "tune", 5, 20),
]


def test_shares_of_epochs_that_patience_leaves() -> None:
    assert shares(ENDED, 100, alike=False) == {("ste", "tune"): 0.75, ("ste", "final"): 0.6, ("none", "tune"): 0.25}
    alike = {("ste", "tune"): (0.15 + 1) / 2, ("ste", "final"): 0.18, ("none", "tune"): 0.05}
    assert shares(ENDED, 100, alike=True) == pytest.approx(alike)


def test_epochs_by_hand() -> None:
    pruning = pruning_of(SPEC)
    assert pruning == Pruning(trials=12, startup=4, epochs=10)
    assert epochs_left(SPEC, {}, None, 0.0) == epochs_left(SPEC, {}, pruning, 0.0) == 4 * 15 * 100
    assert epochs_left(SPEC, {}, pruning, 1.0) == 4 * (4 * 100 + 8 * 10 + 3 * 100)
    assert epochs_left(SPEC, {}, pruning, 0.5) == 4 * (8 * 100 + 4 * 10 + 3 * 100)
    patience = shares(ENDED, 100, alike=False)
    of_none, of_ste = 12 * 25 + 3 * 100, 3 * (12 * 75 + 3 * 60)
    assert epochs_left(SPEC, patience, None, 0.0) == of_none + of_ste
    # A trial that patience ends at 5 epochs is not pruned at 10.
    short = {("none", "tune"): 0.05, ("ste", "tune"): 0.05}
    assert epochs_left(SPEC, short, pruning, 1.0) == 4 * (12 * 5 + 3 * 100)


def test_levers_and_what_is_still_needed() -> None:
    lines = levers(SPEC, ENDED, Speed(at_once=14, epoch_s=3.6, steps_s=1.8, bound_s=0.36))
    first, *others = lines
    assert (first["epochs left"], first["gain"], first["hours"], first["needed"]) == ("100 %", 1.0, 6.0, 6.0)
    assert all(line["gain"] > 1 for line in others)
    assert all(line["gain"] * line["hours"] == pytest.approx(6.0) for line in lines)
    by_name = {line["lever"]: line for line in lines}
    assert by_name["evaluation, start and end of runs free (bound)"]["gain"] == 2
    bounds = [line for name, line in by_name.items() if "TFLOP/s" in name]
    assert [line["gain"] for line in bounds] == pytest.approx([10, 10 * by_name[table_levers.LIKELY]["gain"]])


def test_the_committed_records() -> None:
    found = runs(table_levers.ENDED)
    assert {(run.method, run.most) for run in found} == {(method, 30) for method in METHODS}
    assert len(found) == 17 + 2 * 51
    ended = [run for run in found if run.ended]
    assert min(run.epochs for run in ended) > 10, "patience"
    assert 0.5 < sum(run.epochs for run in found) / (30 * len(found)) < 1
    assert all(0.3 < table_levers.likely_share(method) < 1 for method in METHODS)
    pruners = {json.loads(path.read_text())["pruner"]["name"] for path in RESULTS.glob("*/sweep.json")}
    assert pruners == {"none"}, "what pruning saves can be computed from records now, instead of bounds"
