"""The queue of work, on a real Optuna journal: nothing is run, records are made up."""

import multiprocessing
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from studies_common import THREE, TWO, cells, claims, final_runs, finish_tuning, open_sweep, raw, record, states, tell

from harness.records.heartbeat import Heartbeat
from harness.records.run_directory import RunDirectory
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig

# Topping up


def test_trials_are_topped_up_exactly(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    for _ in range(3):
        plan.top_up(sweep)
        assert states(sweep, TWO) == states(sweep, THREE) == {"WAITING": 3}
    first = queue.claim(sweep, "w")
    assert first is not None
    for _ in range(3):
        plan.top_up(open_sweep(tmp_path))  # by another process, as far as storage can tell
    assert sum(states(sweep, TWO).values()) == sum(states(sweep, THREE).values()) == 3


def test_all_is_claimed_once_the_least_tuned_cell_first(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    found = [(claim.cell.id, claim.trial.number, claim.phase) for claim in claims(sweep)]
    assert found == [(cell, number, "tune") for number in range(3) for cell in (TWO, THREE)]
    assert queue.claim(sweep, "w") is None


def test_a_claim_is_complete(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    plan.top_up(sweep)
    claim = queue.claim(sweep, "me")
    assert claim is not None
    assert claim.config.train.learning_rate == claim.trial.params["train.learning_rate"]
    assert (claim.config.seed, claim.config.phase, claim.config.target_bit) == (1000, "tune", 2)
    assert claim.run_id == claim.config.run_id()
    trial = sweep.studies[TWO].trials[0]
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs == {"worker": "me", "run_id": claim.run_id}


def test_a_finished_sweep_offers_nothing(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    finish_tuning(sweep, lambda claim: record(0.5))
    finals = claims(sweep)
    assert [(claim.phase, claim.config.seed) for claim in finals] == [("final", 0), ("final", 1)] * 2
    assert plan.count(sweep)["final"].left == 4
    for claim in finals:
        tell(sweep, claim, {"rows": []})
    plan.top_up(sweep)
    assert claims(sweep) == []
    counts = plan.count(sweep)
    assert [(phase.total, phase.done, phase.left) for phase in counts.values()] == [(6, 6, 0), (4, 4, 0)]


# Many processes


def _claim_all(root: str, spec: dict[str, Any], worker: int, ready: Any, results: Any) -> None:
    sweep = queue.open_sweep(SweepConfig.model_validate(spec), Path(root))
    found = []
    with Heartbeat(RunDirectory(sweep.folder / "workers" / f"w{worker}")):  # or it would count as dead
        ready.wait(60)
        while (claim := queue.claim(sweep, f"w{worker}")) is not None:
            time.sleep(0.02)  # a run; without it one process is done before the others have woken up
            if claim.phase == "tune":
                found.append((claim.cell.id, claim.trial.number))
                tell(sweep, claim, record(claim.trial.number / 100))
            else:
                found.append(("final", claim.trial.number))
                tell(sweep, claim, {"rows": []})
        plan.top_up(sweep)
    results.put(found)


@pytest.mark.slow
def test_four_processes_claim_forty_trials_once_each(tmp_path: Path) -> None:
    spec = raw(tune={"trials": 20})
    sweep = queue.open_sweep(SweepConfig.model_validate(spec), tmp_path)
    plan.top_up(sweep)
    context = multiprocessing.get_context("forkserver")  # imports what takes time once
    context.set_forkserver_preload(["harness.plan", "optuna.storages"])
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
    sweep = queue.open_sweep(sweep.spec, tmp_path)
    assert states(sweep, TWO) == states(sweep, THREE) == {"COMPLETE": 20}
    workers = Counter(trial.user_attrs["worker"] for trial in sweep.studies[TWO].trials)
    assert set(workers) <= {"w0", "w1", "w2", "w3"}
    # All four topped up at the end, and those that were early enough ran finals: still one of each.
    assert len(final_runs(sweep)) == len(set(final_runs(sweep))) == 4
    assert cells(sweep)[TWO]["chosen"]["trial"] == 19


# Trials that go back


def test_put_back_keeps_number_and_parameters(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, sampler="tpe")
    plan.top_up(sweep)
    first = queue.claim(sweep, "a")
    assert first is not None
    queue.put_back(sweep, first.trial)
    again = queue.claim(sweep, "b")
    assert again is not None
    assert (again.cell.id, again.trial.number) == (first.cell.id, first.trial.number)
    assert again.trial.params == first.trial.params
    assert again.run_id == first.run_id
    assert sweep.studies[TWO].trials[0].user_attrs["worker"] == "b"
    tell(sweep, again, record(0.5))
    assert sweep.studies[TWO].trials[0].value == 0.5
