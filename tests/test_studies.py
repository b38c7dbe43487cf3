"""The queue of work, on a real Optuna journal: nothing is run, records are made up."""

import json
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from harness import plan, study
from harness.record import Heartbeat, RunDirectory, process_identity, read_json, write_json
from harness.search import draw
from harness.seeding import sub_seed
from harness.study import Claim, Sweep
from harness.sweep import SweepSpec

RATE = {"low": 1e-4, "high": 1e-2, "log": True}
RAW: dict[str, Any] = {
    "name": "s",
    "base": {
        "data": {"name": "digits"},
        "model": {"name": "mlp5", "width": 8},
        "train": {"epochs": 1},
        "deploy": {"bits": [2, 3], "scale": "recalibrate"},
    },
    "cells": [{"methods": "ste", "grid": {"target_bit": [2, 3]}, "search": {"train.learning_rate": RATE}}],
    "tune": {"trials": 3},
    "final": {"seeds": [0, 1]},
    "sampler": "random",
}
TWO = "ste,target_bit=2"
THREE = "ste,target_bit=3"


def raw(**changes: Any) -> dict[str, Any]:
    return {**deepcopy(RAW), **changes}


def open_sweep(root: Path, **changes: Any) -> Sweep:
    return study.open_sweep(SweepSpec.model_validate(raw(**changes)), root)


def record(accuracy: float, loss: float = 1.0, **by_bits: float) -> dict[str, Any]:
    """What a run would have recorded: the same accuracy at all bits, or `w2=0.5`."""
    return {
        "rows": [
            {
                "split": "val",
                "deploy": "rtn",
                "bits": bits,
                "accuracy": by_bits.get(f"w{bits}", accuracy),
                "loss": loss,
            }
            for bits in (2, 3, "float")
        ]
    }


def claims(sweep: Sweep, worker: str = "w") -> list[Claim]:
    """All that can be claimed now."""
    found = []
    while (claim := study.claim(sweep, worker)) is not None:
        found.append(claim)
    return found


def finish_tuning(sweep: Sweep, values: Callable[[Claim], dict[str, Any]]) -> None:
    plan.top_up(sweep)
    for claim in claims(sweep):
        assert claim.phase == "tune"
        study.tell(sweep, claim, values(claim))
    plan.top_up(sweep)


def states(sweep: Sweep, cell: str) -> Counter[str]:
    return Counter(trial.state.name for trial in sweep.studies[cell].get_trials(deepcopy=False))


def final_runs(sweep: Sweep) -> list[tuple[str, int, str]]:
    trials = sweep.finals.get_trials(deepcopy=False)
    return [tuple(trial.user_attrs[key] for key in ("cell", "seed", "run_id")) for trial in trials]  # type: ignore[misc]


def cells(sweep: Sweep) -> dict[str, dict[str, Any]]:
    return {cell["id"]: cell for cell in read_json(sweep.folder / "cells.json")["cells"]}


# Topping up


def test_trials_are_topped_up_exactly(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    for _ in range(3):
        plan.top_up(sweep)
        assert states(sweep, TWO) == states(sweep, THREE) == {"WAITING": 3}
    first = study.claim(sweep, "w")
    assert first is not None
    for _ in range(3):
        plan.top_up(open_sweep(tmp_path))  # by another process, as far as storage can tell
    assert sum(states(sweep, TWO).values()) == sum(states(sweep, THREE).values()) == 3


def test_all_is_claimed_once_the_least_tuned_cell_first(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    found = [(claim.cell.id, claim.trial.number, claim.phase) for claim in claims(sweep)]
    assert found == [(cell, number, "tune") for number in range(3) for cell in (TWO, THREE)]
    assert study.claim(sweep, "w") is None


def test_a_claim_is_complete(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    claim = study.claim(sweep, "me")
    assert claim is not None
    assert claim.config.train.learning_rate == claim.trial.params["train.learning_rate"]
    assert (claim.config.seed, claim.config.phase, claim.config.target_bit) == (1000, "tune", 2)
    trial = sweep.studies[TWO].trials[0]
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs == {"worker": "me", "run_id": claim.run_id}
    assert claim.run_id == claim.config.run_id()


def test_a_finished_sweep_offers_nothing(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    finish_tuning(sweep, lambda claim: record(0.5))
    finals = claims(sweep)
    assert [(claim.phase, claim.config.seed) for claim in finals] == [("final", 0), ("final", 1)] * 2
    assert plan.count(sweep)["final"].left == 4
    for claim in finals:
        study.tell(sweep, claim, {"rows": []})
    plan.top_up(sweep)
    assert claims(sweep) == []
    counts = plan.count(sweep)
    assert [(phase.total, phase.done, phase.left) for phase in counts.values()] == [(6, 6, 0), (4, 4, 0)]


# Many processes


def _claim_all(root: str, spec: dict[str, Any], worker: int, ready: Any, results: Any) -> None:
    sweep = study.open_sweep(SweepSpec.model_validate(spec), Path(root))
    found = []
    with Heartbeat(RunDirectory(sweep.folder / "workers" / f"w{worker}")):  # or it would count as dead
        ready.wait(60)
        while (claim := study.claim(sweep, f"w{worker}")) is not None:
            time.sleep(0.02)  # a run; without it one process is done before the others have woken up
            if claim.phase == "tune":
                found.append((claim.cell.id, claim.trial.number))
                study.tell(sweep, claim, record(claim.trial.number / 100))
            else:
                found.append(("final", claim.trial.number))
                study.tell(sweep, claim, {"rows": []})
        plan.top_up(sweep)
    results.put(found)


def test_four_processes_claim_forty_trials_once_each(tmp_path: Path) -> None:
    spec = raw(tune={"trials": 20})
    sweep = study.open_sweep(SweepSpec.model_validate(spec), tmp_path)
    plan.top_up(sweep)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(4), context.Queue()
    arguments = [(str(tmp_path), spec, worker, ready, results) for worker in range(4)]
    processes = [context.Process(target=_claim_all, args=given, daemon=True) for given in arguments]
    for process in processes:
        process.start()
    found = [results.get(timeout=45) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    tuned = sorted(item for part in found for item in part if item[0] != "final")
    assert tuned == [(cell, number) for cell in (TWO, THREE) for number in range(20)]
    assert sum(bool(part) for part in found) > 1  # or it proved nothing
    sweep = study.open_sweep(sweep.spec, tmp_path)
    assert states(sweep, TWO) == states(sweep, THREE) == {"COMPLETE": 20}
    workers = Counter(trial.user_attrs["worker"] for trial in sweep.studies[TWO].trials)
    assert set(workers) <= {"w0", "w1", "w2", "w3"}
    # All four topped up at the end, and whoever was early enough ran finals: still one of each.
    assert len(final_runs(sweep)) == len(set(final_runs(sweep))) == 4
    assert cells(sweep)[TWO]["chosen"]["trial"] == 19


# Trials that go back


def test_put_back_keeps_number_and_parameters(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, sampler="tpe")
    plan.top_up(sweep)
    first = study.claim(sweep, "a")
    assert first is not None
    study.put_back(sweep, first.trial)
    again = study.claim(sweep, "b")
    assert again is not None
    assert (again.cell.id, again.trial.number) == (first.cell.id, first.trial.number)
    assert again.trial.params == first.trial.params
    assert again.run_id == first.run_id
    assert sweep.studies[TWO].trials[0].user_attrs["worker"] == "b"
    study.tell(sweep, again, record(0.5))
    assert sweep.studies[TWO].trials[0].value == 0.5


def dead(sweep: Sweep, name: str, **changes: Any) -> None:
    """The status of a worker whose pid now belongs to another process."""
    files = RunDirectory(sweep.folder / "workers" / name)
    files.path.mkdir(parents=True)
    identity = {**process_identity(), "pid_started": "1", "heartbeat": time.time()}
    write_json(files.status, {"state": "running", **identity, **changes})


def test_only_trials_of_dead_workers_are_put_back(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    dead(sweep, "dead")
    dead(sweep, "ended", pid_started=process_identity()["pid_started"], state="done")
    dead(sweep, "far", host="elsewhere.example")
    dead(sweep, "far and late", host="elsewhere.example", heartbeat=time.time() - 100)
    with Heartbeat(RunDirectory(sweep.folder / "workers" / "alive")):
        taken = {}
        for name in ("dead", "alive", "ended", "far", "far and late", "never seen"):
            claim = study.claim(sweep, name)
            assert claim is not None
            taken[name] = (claim.cell.id, claim.trial.number)
        assert plan.live_workers(sweep) == ["alive", "far"]
        assert plan.reap(sweep) == 4
        assert plan.reap(sweep) == 0
    running = {
        (cell, trial.number)
        for cell in (TWO, THREE)
        for trial in sweep.studies[cell].trials
        if trial.state == TrialState.RUNNING
    }
    assert running == {taken["alive"], taken["far"]}
    waiting = [taken[name] for name in ("dead", "ended", "far and late", "never seen")]
    assert {(claim.cell.id, claim.trial.number) for claim in claims(sweep)} == set(waiting)


def test_a_worker_taken_for_dead_may_tell_late(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    claim = study.claim(sweep, "slow")
    assert claim is not None
    plan.top_up(sweep)
    assert sweep.studies[TWO].trials[0].state == TrialState.WAITING
    study.tell(sweep, claim, record(0.5))  # says so, and does not raise
    again = study.claim(sweep, "quick")
    assert again is not None
    assert again.run_id == claim.run_id  # so the record that stands there is found
    study.tell(sweep, again, record(0.5))
    study.tell(sweep, claim, record(0.5))
    assert sweep.studies[TWO].trials[0].value == 0.5


def test_a_claim_that_is_not_yet_signed_is_left_alone_while_workers_live(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    sweep.storage.set_trial_state_values(sweep.studies[TWO].trials[0]._trial_id, TrialState.RUNNING)
    with Heartbeat(RunDirectory(sweep.folder / "workers" / "alive")) as beat:
        assert plan.reap(sweep) == 0
        beat.state = "done"
    assert plan.reap(sweep) == 1  # nobody is left who could sign


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_run_fails_for_good_after_its_retries(tmp_path: Path, retries: int) -> None:
    sweep = open_sweep(tmp_path, max_retries=retries, tune={"trials": 1})
    plan.top_up(sweep)
    seen = []
    while (claim := study.claim(sweep, "w")) and claim.cell.id == TWO:
        seen.append((claim.trial.number, claim.run_id))
        study.tell_failed(sweep, claim, "ValueError: no")
    assert len(seen) == retries + 1
    assert len(set(seen)) == 1
    assert states(sweep, TWO) == {"FAIL": 1}
    plan.top_up(sweep)
    counts = plan.count(sweep)
    assert (counts["tune"].failed, counts["tune"].left) == (1, 1)
    assert counts["tune"].failures == [
        f"{TWO}: run {seen[0][1]}: ValueError: no",
        f"{TWO}: no trial completed, so there is nothing to choose from",
    ]
    assert counts["final"].total == 2  # those of the other cell


def test_a_pruned_trial_is_finished(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, tune={"trials": 1}, pruner="median")
    plan.top_up(sweep)
    for claim in claims(sweep):
        study.tell_pruned(claim)
    plan.top_up(sweep)
    counts = plan.count(sweep)
    assert (counts["tune"].pruned, counts["tune"].left, counts["final"].total) == (2, 0, 0)
    assert cells(sweep)[TWO]["chosen"] is None


# Choosing


def test_the_best_is_chosen_at_the_cells_own_target(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    accuracies = [{"w2": 0.2, "w3": 0.9}, {"w2": 0.8, "w3": 0.1}, {"w2": 0.5, "w3": 0.5}]
    finish_tuning(sweep, lambda claim: record(0.0, **accuracies[claim.trial.number]))
    assert [cells(sweep)[cell]["chosen"]["trial"] for cell in (TWO, THREE)] == [1, 0]
    chosen, trial = cells(sweep)[TWO]["chosen"], sweep.studies[TWO].trials[1]
    assert chosen == {"trial": 1, "params": trial.params, "value": 0.8, "run_id": trial.user_attrs["run_id"]}


def test_of_equals_the_lowest_number_is_chosen(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    taken = claims(sweep)
    for claim in reversed(taken):  # whoever is first
        study.tell(sweep, claim, record(0.5 if claim.trial.number else 0.25))
    plan.top_up(sweep)
    assert cells(sweep)[TWO]["chosen"]["trial"] == 1


def test_a_loss_is_minimised(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, objective="val/loss_w2")
    finish_tuning(sweep, lambda claim: record(0.5, loss=[3.0, 1.0, 2.0][claim.trial.number]))
    assert cells(sweep)[TWO]["chosen"]["trial"] == 1
    assert cells(sweep)[TWO]["chosen"]["value"] == 1.0


def test_of_a_pareto_front_the_best_by_the_first_objective_is_chosen(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, objective=["val/acc_w2", "val/loss_float"])
    # 0: dominated by 1, and equal to it in the first; 1 and 2: the front
    values = [(0.75, 2.0), (0.75, 1.0), (0.5, 0.5)]
    finish_tuning(sweep, lambda claim: record(values[claim.trial.number][0], loss=values[claim.trial.number][1]))
    assert {trial.number for trial in sweep.studies[TWO].best_trials} == {1, 2}
    chosen = cells(sweep)[TWO]["chosen"]
    assert (chosen["trial"], chosen["value"]) == (1, [0.75, 1.0])


def test_mean_and_worst_are_taken_over_the_deployment_bits(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, objective=["mean", "worst"], tune={"trials": 1})
    finish_tuning(sweep, lambda claim: record(1.0, w2=0.25, w3=0.75))
    assert sweep.studies[TWO].trials[0].values == [0.5, 0.25]


# Finals


def test_finals_are_enqueued_once_when_the_tuning_of_their_cell_is_over(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    assert final_runs(sweep) == []
    taken = claims(sweep)
    for claim in taken:
        if claim.cell.id == TWO:
            study.tell(sweep, claim, record(0.5))
    with Heartbeat(RunDirectory(sweep.folder / "workers" / "w")):  # still busy with the other cell
        for _ in range(3):
            plan.top_up(sweep)
        assert [(cell, seed) for cell, seed, _ in final_runs(sweep)] == [(TWO, 0), (TWO, 1)]
        assert plan.count(sweep)["final"].total == 4
    finals = claims(sweep)
    assert [claim.config.run_id() for claim in finals] == [name for _, _, name in final_runs(sweep)]
    assert {claim.config.train.learning_rate for claim in finals} == {
        cells(sweep)[TWO]["chosen"]["params"]["train.learning_rate"]
    }
    assert {claim.config.phase for claim in finals} == {"final"}


def test_finals_are_no_part_of_a_sampler_s_history(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    finish_tuning(sweep, lambda claim: record(0.5))
    for claim in claims(sweep):
        study.tell(sweep, claim, record(0.125))
    assert {trial.value for cell in (TWO, THREE) for trial in sweep.studies[cell].trials} == {0.5}


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
        study.tell(sweep, claim, {"rows": []})
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
    added = [item for item in final_runs(grown) if item not in before]
    with Heartbeat(RunDirectory(grown.folder / "workers" / "w")):  # who holds the other claims
        first = next(claim for claim in new if claim.phase == "tune" and claim.cell.id == THREE)
        study.tell(grown, first, record(0.75))
        plan.top_up(grown)
    assert cells(grown)[THREE]["chosen"]["trial"] == 0  # trial 3 is better, but 4 is still under way
    assert [(cell, seed) for cell, seed, _ in added] == [(TWO, 2), (THREE, 2)]
    for claim in new:
        if claim is first:
            continue
        study.tell(
            grown, claim, record(0.125 if claim.cell.id == TWO else 0.75) if claim.phase == "tune" else {"rows": []}
        )
    plan.top_up(grown)
    assert cells(grown)[TWO]["chosen"] == chosen
    assert cells(grown)[THREE]["chosen"]["trial"] == 3
    # The cell that chose anew gets all its finals; the superseded ones stay and no longer count.
    newest = [item for item in final_runs(grown) if item not in before and item not in added]
    assert [(cell, seed) for cell, seed, _ in newest] == [(THREE, 0), (THREE, 1), (THREE, 2)]
    counts = plan.count(grown)["final"]
    assert (counts.total, counts.done, counts.left) == (6, 3, 3)


def test_a_larger_number_of_seeds_alone_tunes_nothing(tmp_path: Path) -> None:
    finish_tuning(open_sweep(tmp_path), lambda claim: record(0.5))
    grown = open_sweep(tmp_path, final={"seeds": [0, 1, 7]})
    plan.top_up(grown)
    assert states(grown, TWO) == {"COMPLETE": 3}
    assert Counter(seed for _, seed, _ in final_runs(grown)) == {0: 2, 1: 2, 7: 2}


# Samplers


@pytest.mark.parametrize("sampler", ["random", "grid", "qmc"])
def test_a_static_sampler_gives_a_trial_the_same_parameters_in_any_order(tmp_path: Path, sampler: str) -> None:
    def params(name: str, backwards: bool) -> dict[tuple[str, int], Any]:
        sweep = open_sweep(tmp_path / name, sampler=sampler, tune={"trials": 4})
        if backwards:  # one trial at a time, the cells the other way round, some put back and some told
            sweep = study.Sweep(sweep.spec, list(reversed(sweep.cells)), sweep.folder)
        plan.top_up(sweep)
        found = {}
        while (claim := study.claim(sweep, "w")) and claim.phase == "tune":
            key = (claim.cell.id, claim.trial.number)
            if backwards and key not in found:
                study.put_back(sweep, claim.trial)
            elif backwards:
                study.tell(sweep, claim, record(0.5))
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
    while (claim := study.claim(sweep, "w")) is not None and claim.phase == "tune":
        rate = claim.trial.params["train.learning_rate"]
        rates[claim.cell.id].append(rate)
        study.tell(sweep, claim, record(1 - abs(math.log10(rate) + 2) / 2))  # best at the upper end, 1e-2
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
        study.Cell(cell.id, {**cell.raw, "target_bit": 40}, cell.grid, cell.set, cell.search) for cell in sweep.cells
    ]
    assert study.claim(study.Sweep(sweep.spec, broken, sweep.folder), "w") is None
    assert states(sweep, TWO) == {"FAIL": 1}
    assert "target_bit: 40" in sweep.studies[TWO].trials[0].user_attrs["reason"]


def test_a_lock_left_by_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    (sweep.folder / "study.lock").touch()
    (sweep.folder / "plan.lock").touch()
    started = time.monotonic()
    plan.top_up(sweep)
    assert time.monotonic() - started < 10
    assert os.path.exists(sweep.folder / "study.log")
