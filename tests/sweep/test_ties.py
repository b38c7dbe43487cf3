"""Trials with an equal objective: which one is chosen, in sweeps of this version and of earlier ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies_common import TWO, cells, claims, finish_tuning, open_sweep

from harness.cli.status_report import status_report
from harness.core import yaml_file
from harness.core.errors import UserError
from harness.records.archive import unpack
from harness.records.files import read_json, write_json
from harness.sweep import objective, plan, queue
from harness.sweep.config import SweepConfig
from harness.sweep.queue import Claim, OpenSweep
from harness.sweep.trials import best_trial
from harness.tasks.classification import ACCURACY

REPOSITORY = Path(__file__).parents[2]
PREVIOUS = REPOSITORY / "tests/cluster/previous_version"
BITS = (2, 3, "float")


def finish(sweep: OpenSweep, accuracies: dict[int, dict[Any, float]], losses: dict[int, dict[Any, float]]) -> None:
    """Carry out the tuning with made-up records: by trial, accuracy (0.5 if none is given) and loss by bit-width."""

    def recorded(claim: Claim) -> dict[str, Any]:
        by_bits, loss = accuracies.get(claim.trial.number, {}), losses[claim.trial.number]
        rows = [
            {"split": "val", "deploy": "rtn", "bits": bits, "accuracy": by_bits.get(bits, 0.5), "loss": loss[bits]}
            for bits in BITS
        ]
        record = {"rows": rows, "config": claim.config.model_dump(mode="json")}
        folder = sweep.files.run(claim.run_id)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.record, record)
        return record

    finish_tuning(sweep, recorded)


def chosen(sweep: OpenSweep) -> int:
    trial: int = cells(sweep)[TWO]["chosen"]["trial"]
    return trial


#: By trial: the loss at 2 bits, at 3 bits and in float. Each column, and the mean of 2 and 3 bits, has its own lowest.
LOSSES = {
    number: dict(zip(BITS, values, strict=True))
    for number, values in enumerate([(4.0, 4.0, 4.0), (1.0, 9.0, 3.0), (9.0, 1.0, 2.0), (3.0, 3.0, 1.0)])
}


@pytest.mark.parametrize(
    ("objective", "trial"),
    [("target", 1), ("val/acc_w3", 2), ("val/acc_float", 3), ("mean", 3), (["target", "val/loss_float"], 3)],
    ids=str,
)
def test_of_equal_trials_the_one_with_the_lowest_loss_where_the_objective_is_measured(
    tmp_path: Path, objective: Any, trial: int
) -> None:
    sweep = open_sweep(tmp_path, objective=objective, tune={"trials": 4})
    finish(sweep, {}, LOSSES)
    assert chosen(sweep) == trial
    best = {cell["id"]: cell["best"] for cell in status_report(sweep)["cells"]}[TWO]
    assert best["trial"] == trial


def test_of_the_worst_bit_width_the_loss_at_the_worst_counts(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, objective="worst", tune={"trials": 4})
    # The worst accuracy, 0.25, is at 3 bits in trial 1 and at 2 bits in the others.
    accuracies = {number: {2: 0.25} for number in (0, 2, 3)} | {1: {3: 0.25}}
    finish(sweep, accuracies, {**LOSSES, 1: {2: 1.0, 3: 3.5, "float": 1.0}})
    assert chosen(sweep) == 3
    equal = {"val/acc_w2": 0.25, "val/acc_w3": 0.25, "val/loss_w2": 1.0, "val/loss_w3": 2.0}
    assert objective_loss("worst", equal) == 2.0  # accuracy is as low at both: the higher loss


def objective_loss(name: str, metrics: dict[str, float]) -> float:
    return objective.loss_at(name, metrics, [2, 3], 2, ACCURACY)


def test_a_better_objective_wins_whatever_its_loss(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, tune={"trials": 4})
    finish(sweep, {2: {2: 0.75}}, LOSSES)
    assert chosen(sweep) == 2


def test_equal_losses_and_absent_records_leave_it_to_the_number(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path / "equal", tune={"trials": 4})
    finish(sweep, {}, dict.fromkeys(range(4), LOSSES[0]))
    assert chosen(sweep) == 0
    sweep = open_sweep(tmp_path / "absent", tune={"trials": 4})
    finish(sweep, {}, LOSSES)
    run = sweep.studies[TWO].trials[1].user_attrs["run_id"]
    sweep.files.run(run).record.unlink()
    assert status_report(sweep)["cells"][0]["best"]["trial"] == 3


def test_first_takes_the_lowest_number(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, tie_break="first", tune={"trials": 4})
    finish(sweep, {}, LOSSES)
    assert chosen(sweep) == 0


# Sweeps of earlier versions


def as_before(folder: Path) -> None:
    """Make a sweep.json one of a version that had no such key."""
    raw = read_json(folder / "sweep.json")
    del raw["tie_break"]
    write_json(folder / "sweep.json", raw)


def test_a_sweep_launched_before_the_key_keeps_its_choice_as_it_grows(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, tie_break="first", tune={"trials": 4})
    finish(sweep, {}, LOSSES)
    as_before(sweep.folder)
    before = cells(sweep)[TWO]["chosen"]
    grown = open_sweep(tmp_path, tune={"trials": 4}, final={"seeds": [0, 1, 2]})  # its file still has no such key
    plan.top_up(grown)
    assert cells(grown)[TWO]["chosen"] == before
    assert sorted(cells(grown)[TWO]["finals"]) == ["0", "1", "2"]
    assert read_json(grown.folder / "sweep.json")["tie_break"] == "first"
    with pytest.raises(UserError, match="differs in: tie_break"):
        open_sweep(tmp_path, tie_break="loss", tune={"trials": 4}, final={"seeds": [0, 1, 2]})


def opened(file: Path, root: Path, *more_seeds: int) -> OpenSweep:
    """The sweep of a file, grown by seeds, with its finished trials told from their records. Nothing is trained."""
    raw = yaml_file.read(file)
    raw["final"]["seeds"] += more_seeds
    sweep = queue.open_sweep(SweepConfig.model_validate(raw), root)
    plan.top_up(sweep)
    for claim in claims(sweep):
        if claim.phase == "tune":
            queue.tell(claim, queue.objectives(sweep, claim, read_json(sweep.files.run(claim.run_id).record)))
    plan.top_up(sweep)
    return sweep


def test_a_seed_added_to_an_archive_of_the_previous_version_changes_no_chosen_trial(tmp_path: Path) -> None:
    """Where all its trials are equal, and the later one has the lower loss."""
    root = tmp_path / "root"
    shutil.copytree(PREVIOUS, root)
    for path in root.glob("small/runs/*/record.json"):
        record = read_json(path)
        number = read_json(path.parent / "trials.json")[0]["trial"]
        for row in record["rows"]:
            row |= {"accuracy": 0.5, "loss": 2.0 - number}
        write_json(path, record)
    for name in ("study.log", "cells.json"):  # told and chosen anew, from these records
        (root / "small" / name).unlink()
    for seeds in ((), (7,)):
        sweep = opened(PREVIOUS / "small.yaml", root, *seeds)
        assert [cell["chosen"]["trial"] for cell in cells(sweep).values()] == [0, 0]
    assert all("7" in cell["finals"] for cell in cells(sweep).values())


def test_a_seed_added_to_a_committed_sweep_changes_no_chosen_trial(tmp_path: Path) -> None:
    """One that has a cell whose trials are equal, and of which the first has not the lowest loss."""
    unpack(REPOSITORY / "analysis/results/finetune_mlp5", tmp_path)
    before = read_json(tmp_path / "finetune_mlp5/cells.json")["cells"]
    sweep = opened(REPOSITORY / "sweeps/finetune_mlp5.yaml", tmp_path, 77)
    after = cells(sweep).values()
    assert [cell["chosen"] for cell in after] == [cell["chosen"] for cell in before]
    assert all("77" in cell["finals"] for cell in after)
    as_now = replace(sweep, spec=sweep.spec.model_copy(update={"tie_break": "loss"}))
    best = {cell: best_trial(as_now, cell, study.trials) for cell, study in sweep.studies.items()}
    assert [best[cell["id"]].number for cell in before] != [cell["chosen"]["trial"] for cell in before]


def test_committed_sweep_files_say_how_their_results_were_chosen() -> None:
    """A sweep launched anew from such a file chooses as the committed one did."""
    for stored in sorted((REPOSITORY / "analysis/results").glob("*/sweep.json")):
        raw = yaml_file.read(REPOSITORY / f"sweeps/{stored.parent.name}.yaml")
        launched = json.loads(stored.read_text()).get("tie_break", "first")
        assert raw.get("tie_break", "loss") == launched, stored
