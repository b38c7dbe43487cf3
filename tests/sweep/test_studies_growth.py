"""The queue of work, on a real Optuna journal: nothing is run, records are made up."""

import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from studies_common import (
    RATE,
    THREE,
    TWO,
    cells,
    claims,
    final_runs,
    finish_tuning,
    open_sweep,
    raw,
    record,
    states,
    tell,
)

from harness.cli.dry_run import show_status
from harness.cli.there import look
from harness.cluster.profile import Profile
from harness.cluster.signals import StopRequest
from harness.cluster.worker import Worker
from harness.core.errors import UserError
from harness.core.seeding import sub_seed
from harness.records.heartbeat import Heartbeat
from harness.records.run_directory import RunDirectory
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig
from harness.sweep.search_space import draw


def test_without_tuning_the_finals_use_the_values_as_written(tmp_path: Path) -> None:
    plain = [{"methods": "ste", "grid": {"target_bit": [2, 3]}}]
    sweep = open_sweep(tmp_path, tune={"trials": 0}, cells=plain)
    plan.top_up(sweep)
    assert [(claim.cell.id, claim.config.seed) for claim in claims(sweep)] == [
        (cell, seed) for cell in (TWO, THREE) for seed in (0, 1)
    ]
    assert cells(sweep)[TWO]["chosen"]["trial"] is None


def test_two_cells_of_the_same_configuration_share_a_run(tmp_path: Path) -> None:
    twins = [
        {"methods": "ste", "set": {"target_bit": 2}},
        {"methods": "ste", "set": {"target_bit": 2, "train.epochs": 1}},
        {"methods": "ste", "set": {"target_bit": 3}},
    ]
    sweep = open_sweep(tmp_path, tune={"trials": 0}, cells=twins)
    plan.top_up(sweep)
    found = claims(sweep)
    assert len(found) == 6
    assert len({claim.run_id for claim in found}) == 4
    assert [claim.run_id for claim in found[:2]] == [claim.run_id for claim in found[2:4]]


# Growth


def test_a_grown_sweep_adds_only_what_is_missing(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    finish_tuning(sweep, lambda claim: record(0.5 - claim.trial.number / 10))
    for claim in claims(sweep):
        tell(sweep, claim, {"rows": []})
    before = final_runs(sweep)
    chosen = cells(sweep)[TWO]["chosen"]
    assert chosen["trial"] == 0

    grown = open_sweep(tmp_path, tune={"trials": 5}, final={"seeds": [0, 1, 2]})
    plan.top_up(grown)
    assert states(grown, TWO) == {"COMPLETE": 3, "WAITING": 2}
    assert cells(grown)[TWO]["chosen"] == chosen  # until the new trials are in
    new = claims(grown)
    assert [(claim.cell.id, claim.trial.number) for claim in new if claim.phase == "tune"] == [
        (cell, number) for number in (3, 4) for cell in (TWO, THREE)
    ]
    assert final_runs(grown) == before  # the new seed waits for the new choice
    with Heartbeat(RunDirectory(grown.folder / "workers" / "w")):  # who holds the other claims
        first = next(claim for claim in new if claim.phase == "tune" and claim.cell.id == THREE)
        tell(grown, first, record(0.75))
        plan.top_up(grown)
    assert cells(grown)[THREE]["chosen"]["trial"] == 0  # trial 3 is better, but 4 is still under way
    assert final_runs(grown) == before
    for claim in new:
        if claim is first:
            continue
        tell(grown, claim, record(0.125 if claim.cell.id == TWO else 0.75) if claim.phase == "tune" else {"rows": []})
    plan.top_up(grown)
    assert cells(grown)[TWO]["chosen"] == chosen
    assert cells(grown)[THREE]["chosen"]["trial"] == 3
    # The cell that chose anew gets all its finals; the superseded ones stay and no longer count.
    newest = [item for item in final_runs(grown) if item not in before]
    assert [(cell, seed) for cell, seed, _ in newest] == [(TWO, 2), (THREE, 0), (THREE, 1), (THREE, 2)]
    counts = plan.count(grown)["final"]
    assert (counts.total, counts.done, counts.left) == (6, 2, 4)


def test_a_larger_number_of_seeds_alone_tunes_nothing(tmp_path: Path) -> None:
    finish_tuning(open_sweep(tmp_path), lambda claim: record(0.5))
    grown = open_sweep(tmp_path, final={"seeds": [0, 1, 7]})
    plan.top_up(grown)
    assert states(grown, TWO) == {"COMPLETE": 3}
    assert Counter(seed for _, seed, _ in final_runs(grown)) == {0: 2, 1: 2, 7: 2}


def cells_of(*targets: int, **other: Any) -> list[dict[str, Any]]:
    return [{"methods": "ste", "grid": {"target_bit": list(targets)}, "search": {"train.learning_rate": RATE}, **other}]


def test_cells_may_be_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = open_sweep(tmp_path)
    finish_tuning(sweep, lambda claim: record(0.5))
    for claim in claims(sweep):
        tell(sweep, claim, {"rows": []})
    before, finals = cells(sweep), final_runs(sweep)
    more = [*cells_of(4, 3, 2), {"methods": "none", "set": {"watch_bit": 2}, "search": {"train.learning_rate": RATE}}]
    spec = SweepConfig.model_validate(raw(cells=more))
    there = look(spec, tmp_path)
    assert show_status(sweep.folder, "local", Profile(), there) == 0
    assert "10 runs left, 0 workers on it, 10 of them in 2 new cells" in capsys.readouterr().out
    grown = open_sweep(tmp_path, cells=more)
    plan.top_up(grown)
    now = cells(grown)
    assert {name: now[name] for name in before} == before
    assert final_runs(grown) == finals
    new = {name: states(grown, name)["WAITING"] for name in now if name not in before}
    assert new == {"ste,target_bit=4": 3, "none,watch_bit=2": 3}
    assert states(grown, TWO) == {"COMPLETE": 3}


@pytest.mark.parametrize(
    "changed",
    [
        cells_of(2),  # one is gone
        cells_of(2, 3, 4, set={"train.epochs": 2}),
        cells_of(2, 3, 4, search={"train.learning_rate": {**RATE, "high": 0.1}}),
    ],
)
def test_a_cell_that_is_there_stays_as_it_is(changed: list[dict[str, Any]], tmp_path: Path) -> None:
    open_sweep(tmp_path)
    with pytest.raises(
        UserError, match=r"differs in: .*Only tune\.trials and final\.seeds may grow, and cells may be added"
    ):
        open_sweep(tmp_path, cells=changed)


def test_cells_are_added_once_its_workers_have_stopped(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    with Heartbeat(RunDirectory(sweep.folder / "workers" / "w")):
        assert sweep.files.living_workers() == ["w"]
        with pytest.raises(UserError, match=r"cells: 1 worker still uses those of the launch; harness.cancel stops"):
            open_sweep(tmp_path, cells=cells_of(2, 3, 4))


# Samplers


@pytest.mark.parametrize("sampler", ["random", "grid", "qmc"])
def test_a_static_sampler_gives_a_trial_the_same_parameters_in_any_order(tmp_path: Path, sampler: str) -> None:
    def params(name: str, backwards: bool) -> dict[tuple[str, int], Any]:
        sweep = open_sweep(tmp_path / name, sampler=sampler, tune={"trials": 4})
        if backwards:  # one trial at a time, the cells the other way round, some put back and some told
            sweep = queue.OpenSweep(sweep.spec, list(reversed(sweep.cells)), sweep.folder)
        plan.top_up(sweep)
        found = {}
        while (claim := queue.claim(sweep, "w")) and claim.phase == "tune":
            key = (claim.cell.id, claim.trial.number)
            if backwards and key not in found:
                queue.put_back(sweep, claim.trial)
            elif backwards:
                tell(sweep, claim, record(0.5))
            found[key] = (claim.trial.params, claim.run_id)
        return found

    forwards = params("a", False)
    assert len(forwards) == 8
    assert params("b", True) == forwards
    space = open_sweep(tmp_path / "a", sampler=sampler, tune={"trials": 4}).cells[0].search
    drawn = [draw(space, sampler, sub_seed(1000, "sampler", TWO), index) for index in range(4)]
    assert [forwards[TWO, index][0] for index in range(4)] == drawn
    assert len({str(point) for point in drawn}) == 4


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_trials_of_an_adaptive_sampler_differ(tmp_path: Path, sampler: str) -> None:
    sweep = open_sweep(tmp_path, sampler=sampler, tune={"trials": 12})
    plan.top_up(sweep)
    found = claims(sweep)  # nothing told: every worker sees the same, empty history
    values = [claim.trial.params["train.learning_rate"] for claim in found]
    assert len(set(values)) == len(values) == 24
    assert all(1e-4 <= value <= 1e-2 for value in values)


def test_tpe_learns_from_what_it_was_told(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, sampler={"name": "tpe", "n_startup_trials": 5}, tune={"trials": 20})
    plan.top_up(sweep)
    rates: dict[str, list[float]] = {TWO: [], THREE: []}
    while (claim := queue.claim(sweep, "w")) is not None and claim.phase == "tune":
        rate = claim.trial.params["train.learning_rate"]
        rates[claim.cell.id].append(rate)
        tell(sweep, claim, record(1 - abs(math.log10(rate) + 2) / 2))  # best at the upper end, 1e-2
    for drawn in rates.values():
        # Median of the last ten: for uninformed draws it is 1e-3 in the middle, and above 3e-3 once in 10 sweeps.
        assert sorted(drawn[-10:])[5] > 3e-3


def test_dimensions_of_every_kind_reach_the_configuration(tmp_path: Path) -> None:
    search = {
        "train.learning_rate": RATE,
        "train.epochs": {"low": 1, "high": 9, "kind": "int"},
        "train.batch_size": {"low": 8, "high": 64, "kind": "int", "step": 8},
        "train.label_smoothing": {"low": 0, "high": 0.5, "step": 0.25},
        "train.optimizer": ["adam", "sgd"],
        "train.patience": [None, 3],
    }
    cells_ = [{"methods": "ste", "set": {"target_bit": 2}, "search": search}]
    for sampler in ("random", "tpe"):
        sweep = open_sweep(tmp_path / sampler, cells=cells_, sampler=sampler, tune={"trials": 6})
        plan.top_up(sweep)
        for claim in claims(sweep):
            train = claim.config.train
            assert json.loads(json.dumps(claim.trial.params)) == {
                f"train.{name.partition('.')[2]}": getattr(train, name.partition(".")[2]) for name in search
            }
            assert train.batch_size % 8 == 0
            assert train.label_smoothing in (0, 0.25, 0.5)
            assert type(train.epochs) is int


def test_values_that_clash_fail_their_trial_not_their_worker(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, tune={"trials": 1})
    plan.top_up(sweep)
    broken = [
        queue.Cell(cell.id, {**cell.raw, "target_bit": 40}, cell.grid, cell.set, cell.search) for cell in sweep.cells
    ]
    stop, worker = StopRequest(tmp_path, 1.0), Worker(str(sweep.folder), "w", keep_signals=True)
    claim = queue.claim(queue.OpenSweep(sweep.spec, broken, sweep.folder), "w")
    assert claim is not None
    assert worker._carry_out(sweep, claim, stop) == 1
    assert states(sweep, TWO) == {"FAIL": 1}  # at once: trying again would not help
    assert "target_bit: 40" in sweep.studies[TWO].trials[0].user_attrs["reason"]


def test_a_lock_left_by_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    (sweep.folder / "study.lock").touch()
    (sweep.folder / "plan.lock").touch()
    started = time.monotonic()
    plan.top_up(sweep)
    assert time.monotonic() - started < 10
    assert os.path.exists(sweep.folder / "study.log")
