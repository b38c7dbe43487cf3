"""Objectives with a direction of their own: metrics that runs report beside their rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from config_common import RAW as RUN
from studies_common import TWO, cells, finish_tuning, open_sweep, raw, record

from analysis import frames, report
from analysis.results import Cell, SweepResults, Trial
from harness.core import outside
from harness.core.errors import UserError
from harness.records import schema
from harness.records.archive import pack, unpack
from harness.records.files import write_json
from harness.sweep import objective, plan, queue
from harness.sweep.config import SweepConfig, from_json, plain, read_sweep
from harness.sweep.queue import Claim, OpenSweep, load_sweep
from harness.sweep.reported import Objective, check_reported
from harness.tasks.classification import ACCURACY
from harness.training.config import parse

CALM = {"name": schema.FREQUENCY, "direction": "minimize"}
#: By trial: the frequency of each epoch. The second is the best epoch by accuracy.
FREQUENCIES = [(0.1, 0.3, 0.1), (0.9, 0.2, 0.9), (0.1, 0.4, 0.1)]


def carried_out(sweep: OpenSweep, frequencies: list[tuple[float, ...]] = FREQUENCIES) -> OpenSweep:
    """The tuning with made-up records and epochs, which are written as runs write them."""

    def recorded(claim: Claim) -> dict[str, Any]:
        number = claim.trial.number
        run = sweep.files.run(claim.run_id)
        run.path.mkdir(parents=True, exist_ok=True)
        for epoch, frequency in enumerate(frequencies[number], 1):
            run.append_metrics({schema.EPOCH: epoch, schema.FREQUENCY: frequency, schema.THRESHOLD_HISTOGRAM: [1]})
        config = claim.config.model_dump(mode="json")
        found = {**record(0.1 * number), "run_id": claim.run_id, "config": config, "best_epoch": 2}
        write_json(run.record, found)
        params = dict(claim.params)
        entry = {"cell": claim.cell.id, "phase": claim.phase, "trial": number, "params": params}
        write_json(run.trials, [entry])
        return found

    finish_tuning(sweep, recorded)
    return sweep


def test_a_metric_of_the_best_epoch_is_minimised(tmp_path: Path) -> None:
    sweep = carried_out(open_sweep(tmp_path, objective=CALM))
    assert [trial.value for trial in sweep.studies[TWO].trials] == [0.3, 0.2, 0.4]
    chosen = cells(sweep)[TWO]["chosen"]
    assert (chosen["trial"], chosen["value"]) == (1, 0.2)
    assert json.loads(sweep.files.cells.read_text())["objective"] == [schema.FREQUENCY]
    assert load_sweep(sweep.folder).spec.objective == (Objective.model_validate(CALM),)


def test_it_may_be_one_of_several(tmp_path: Path) -> None:
    sweep = carried_out(open_sweep(tmp_path, objective=["target", CALM]))
    assert [trial.values for trial in sweep.studies[TWO].trials] == [[0.0, 0.3], [0.1, 0.2], [0.2, 0.4]]
    assert [direction.name for direction in sweep.studies[TWO].directions] == ["MAXIMIZE", "MINIMIZE"]


def test_equal_trials_go_by_the_loss_at_the_target(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, objective=CALM)
    carried_out(sweep, [(0, 0.5, 0)] * 3)
    assert objective.loss_at(sweep.spec.objective[0], {"val/acc_w2": 1, "val/loss_w2": 0.25}, [2], 2, ACCURACY) == 0.25
    assert cells(sweep)[TWO]["chosen"]["trial"] == 0


def test_a_lost_queue_and_an_archive_have_the_same_values(tmp_path: Path) -> None:
    sweep = carried_out(open_sweep(tmp_path, objective=CALM, sampler={"name": "tpe", "n_startup_trials": 9}))
    before = sorted(trial.value for trial in sweep.studies[TWO].trials)
    (sweep.folder / "study.log").unlink()
    for folder in (sweep.folder, unpack(pack(sweep.folder, tmp_path / "kept", unfinished=True), tmp_path / "again")):
        (folder / "study.log").unlink(missing_ok=True)
        again = load_sweep(folder)
        plan.top_up(again)
        assert sorted(trial.value for trial in again.studies[TWO].trials) == before


def test_what_a_run_did_not_report_is_said(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, objective={"name": "kure/kurtosis", "direction": "minimize"})
    plan.top_up(sweep)
    claim = queue.claim(sweep, "w")
    assert claim is not None
    sweep.files.run(claim.run_id).path.mkdir(parents=True)
    sweep.files.run(claim.run_id).append_metrics({schema.EPOCH: 1, "kure/kurtosi": 1.0, "kure/kurtosis": float("nan")})
    with pytest.raises(UserError, match=r"'kure/kurtosis': the run did not report it as a finite .* 'kure/kurtosi'"):
        queue.objectives(sweep, claim, {**record(0.5), "best_epoch": 1})


def test_the_pruner_sees_each_epoch() -> None:
    config = parse({**RUN, "monitor": {"deploy": "bn_reestimation"}})
    assert objective.epoch_value(Objective.model_validate(CALM), {schema.FREQUENCY: 0.5}, config) == 0.5
    SweepConfig.model_validate(raw(objective=CALM, pruner="median"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (schema.FREQUENCY, r"which values are better\? Write \{name: osc/frequency, direction: minimize\}"),
        ("kure/kurtosis", "which values are better"),
        ({"name": "osc/freqency", "direction": "minimize"}, r"'osc/freqency' is unknown; did you mean 'osc/frequency'"),
        ({"name": "train/los", "direction": "minimize"}, r"unknown; did you mean 'train/loss'"),
        ({"name": "val/acc_w3", "direction": "minimize"}, r"direction: 'minimize' \(legal: maximize"),
        ({"name": "test/acc_w3", "direction": "maximize"}, "'test/acc_w3' is unknown"),
        ({"name": schema.FREQUENCY}, "direction: missing"),
        ({"name": schema.FREQUENCY, "direction": "min"}, r"did you mean 'minimize'\? \(legal: minimize, maximize\)"),
    ],
)
def test_other_objectives_are_refused(given: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(raw(objective=given)))
    with pytest.raises(UserError, match=said):
        read_sweep(path)


def test_names_with_a_direction_of_their_own_stay_names() -> None:
    spec = SweepConfig.model_validate(raw(objective=[{"name": "val/loss_w2", "direction": "minimize"}, CALM]))
    assert plain(spec)["objective"] == ["val/loss_w2", CALM]
    assert from_json(plain(spec)) == spec
    assert spec.objectives == ["val/loss_w2", schema.FREQUENCY]


def test_what_its_runs_do_not_report_is_refused() -> None:
    goals = ["target", Objective.model_validate(CALM)]
    check_reported(goals, [schema.FREQUENCY])
    with pytest.raises(
        UserError, match=r"do not report that; did you mean 'osc/frequenci'\? \(reported: osc/frequenci\)"
    ):
        check_reported(goals, ["osc/frequenci", "osc_layers/x"])


def test_a_function_that_reads_what_its_runs_do_not_report_is_refused(tmp_path: Path) -> None:
    def check(name: str) -> None:
        goals = of_file(tmp_path, {**BALANCE, "name": f"score.py:{name}"}).objective
        check_reported(goals, [schema.FREQUENCY], ["val/acc_w2"])

    for name in ("balance", "own_key", "text", "infinite"):  # what it makes of numbers is seen by its runs
        check(name)
    with pytest.raises(UserError, match=r"score:misspelt.* do not report 'osc/freq'; did you mean 'osc/frequency'"):
        check("misspelt")


def test_a_report_shows_the_chosen_value(tmp_path: Path) -> None:
    sweep = carried_out(open_sweep(tmp_path, objective=CALM))
    chosen = cells(sweep)[TWO]["chosen"]
    cell = Cell(TWO, ("ste",), {}, (0, 1), chosen, {}, ())
    found = json.loads(sweep.files.run(chosen["run_id"]).record.read_text())
    trial = Trial(cell, chosen["trial"], found["run_id"], {}, found)
    assert frames.objective_value(trial, schema.FREQUENCY) is None
    assert frames.objective_value(trial, "target") == 0.1
    results = SweepResults("s", [cell], objective=(schema.FREQUENCY,), trials=[trial])
    assert report._cells(results)[0][3] == "0.2"


# Functions of metrics

SCORE = """
def balance(metrics):
    return metrics["val/acc_w2"] - 10 * metrics["osc/frequency"]

def infinite(metrics):
    return metrics["val/acc_w2"] / 1e-320

def misspelt(metrics):
    return metrics["osc/freq"]

def own_key(metrics):
    return {}[1]

def text(metrics):
    return "high"

number = 3
"""
BALANCE = {"name": "score.py:balance", "direction": "maximize"}


def of_file(folder: Path, objective: Any, source: str = SCORE) -> SweepConfig:
    """A sweep file beside score.py, read."""
    (folder / "score.py").write_text(source)
    (folder / "s.yaml").write_text(json.dumps(raw(objective=objective)))
    return read_sweep(folder / "s.yaml")


def test_a_function_of_metrics(tmp_path: Path) -> None:
    sweep = carried_out(queue.open_sweep(of_file(tmp_path, BALANCE), tmp_path / "runs"))
    values = [trial.value for trial in sweep.studies[TWO].trials]
    assert values == pytest.approx([0.0 - 3.0, 0.1 - 2.0, 0.2 - 4.0])
    assert cells(sweep)[TWO]["chosen"]["trial"] == 1
    kept = sorted((sweep.folder / "components").iterdir())
    assert [path.read_text() for path in kept] == [SCORE]
    assert str(tmp_path) not in sweep.files.sweep.read_text()
    (tmp_path / "score.py").unlink()  # what was launched goes on without it
    outside._known.clear()
    again = load_sweep(sweep.folder)
    assert again.spec == sweep.spec
    assert again.spec.objective[0].value({"val/acc_w2": 1, "osc/frequency": 0}) == 1  # type: ignore[union-attr]


def test_an_edited_function_is_another_sweep(tmp_path: Path) -> None:
    queue.open_sweep(of_file(tmp_path, BALANCE), tmp_path / "runs")
    queue.open_sweep(of_file(tmp_path, BALANCE), tmp_path / "runs")
    with pytest.raises(UserError, match=r"score.py was edited since the launch"):
        queue.open_sweep(of_file(tmp_path, BALANCE, SCORE.replace("10", "11")), tmp_path / "runs")


@pytest.mark.parametrize(
    ("given", "source", "said"),
    [
        ("score.py:balance", SCORE, r"which values are better\? Write \{name: 'score.py:balance', direction"),
        ({**BALANCE, "name": "scor.py:balance"}, SCORE, r"there is no such file; did you mean 'score.py'"),
        ({**BALANCE, "name": "score.py:balanc"}, SCORE, r"has no 'balanc'; did you mean 'balance'"),
        ({**BALANCE, "name": "score.py:number"}, SCORE, "3 is no function of metrics"),
        ({**BALANCE, "name": "score.py"}, SCORE, r"is a file: name a function in it, as FILE\.py:FUNCTION"),
        (BALANCE, "import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ({"name": "score.py:balance"}, SCORE, "direction: missing"),
    ],
)
def test_functions_that_cannot_be_had_are_refused(given: Any, source: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        of_file(tmp_path, given, source)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("infinite", "its value is inf, which is no finite number"),
        ("text", "ValueError: could not convert string"),
        (
            "balance",
            r"no metric 'osc/frequency'; did you mean 'osc/frequenzy'\? \(reported: osc/frequenzy, val/acc_w2\)",
        ),
        ("misspelt", r"no metric 'osc/freq'; did you mean 'osc/frequenzy'\? \(reported: osc/frequenzy, val/acc_w2\)"),
        ("own_key", "KeyError: 1"),
    ],
)
def test_a_value_that_is_no_number_fails_the_trial(name: str, said: str, tmp_path: Path) -> None:
    (goal,) = of_file(tmp_path, {**BALANCE, "name": f"score.py:{name}"}).objective
    assert isinstance(goal, Objective)
    with pytest.raises(UserError, match=said):
        goal.value({"osc/frequenzy": 0.1, "val/acc_w2": 0.5, f"{schema.LAYER_PREFIX}x": 0.5})
