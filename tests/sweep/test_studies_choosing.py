"""The queue of work, on a real Optuna journal: nothing is run, records are made up."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from studies_common import THREE, TWO, cells, claims, final_runs, finish_tuning, open_sweep, record, states, tell

from harness.records.files import write_json
from harness.records.heartbeat import Heartbeat, process_identity
from harness.records.run_directory import RunDirectory
from harness.sweep import plan, queue
from harness.sweep.queue import OpenSweep


def dead(sweep: OpenSweep, name: str, age_s: float = 0.0, **changes: Any) -> None:
    """The status of a worker whose pid now belongs to another process."""
    files = RunDirectory(sweep.folder / "workers" / name)
    files.path.mkdir(parents=True)
    identity = {**process_identity(), "pid_started": "1"}
    write_json(files.status, {"state": "running", **identity, **changes})
    then = time.time() - age_s
    os.utime(files.status, (then, then))


def test_only_trials_of_dead_workers_are_put_back(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    dead(sweep, "dead")
    dead(sweep, "ended", pid_started=process_identity()["pid_started"], state="done")
    dead(sweep, "far", machine="elsewhere.example")
    dead(sweep, "far and late", 100.0, machine="elsewhere.example")
    with Heartbeat(RunDirectory(sweep.folder / "workers" / "alive")):
        taken = {}
        for name in ("dead", "alive", "ended", "far", "far and late", "never seen"):
            claim = queue.claim(sweep, name)
            assert claim is not None
            taken[name] = (claim.cell.id, claim.trial.number)
        assert sweep.files.living_workers() == ["alive", "far"]
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
    claim = queue.claim(sweep, "slow")
    assert claim is not None
    plan.top_up(sweep)
    assert sweep.studies[TWO].trials[0].state == TrialState.WAITING
    tell(sweep, claim, record(0.5))  # says so, and does not raise
    again = queue.claim(sweep, "quick")
    assert again is not None
    assert again.run_id == claim.run_id  # so the record that is there is found
    tell(sweep, again, record(0.5))
    tell(sweep, claim, record(0.5))
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
    while (claim := queue.claim(sweep, "w")) and claim.cell.id == TWO:
        seen.append((claim.trial.number, claim.run_id))
        queue.tell_failed(sweep, claim, "ValueError: no")
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
        queue.tell(claim, None)
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
    for claim in reversed(taken):  # in any order
        tell(sweep, claim, record(0.5 if claim.trial.number else 0.25))
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
            tell(sweep, claim, record(0.5))
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
        tell(sweep, claim, record(0.125))
    assert {trial.value for cell in (TWO, THREE) for trial in sweep.studies[cell].trials} == {0.5}
