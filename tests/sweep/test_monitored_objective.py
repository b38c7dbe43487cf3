"""`monitor.deploy` in a sweep: objectives, ties, the pruner, the status and a rebuilt queue go by rows after it."""

from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from config_common import RAW as RUN
from rich.console import Console
from studies_common import RAW, THREE, TWO, cells, finish_tuning, open_sweep

from analysis import frames
from analysis.results import Cell, Trial
from harness import status
from harness.cli import progress
from harness.cli.status_report import status_report
from harness.core.errors import UserError
from harness.records import schema
from harness.records.files import read_json, write_json
from harness.sweep import objective, plan
from harness.sweep.queue import Claim, OpenSweep, load_sweep
from harness.training.config import parse

AFTER = {"deploy": {"name": "bn_reestimation", "batches": 2}}
BITS = (2, 3, "float")
#: By trial: accuracy after the method at each bit-width. By round-to-nearest trial 0 is best everywhere.
ACCURACIES = [
    dict(zip(BITS, values, strict=True)) for values in [(0.5, 0.75, 0.125), (0.75, 0.5, 0.25), (0.5, 0.875, 0.5)]
]
LOSSES = (3.0, 2.0, 1.0)


def monitored(root: Path, **changes: Any) -> OpenSweep:
    return open_sweep(root, base={**deepcopy(RAW["base"]), "monitor": AFTER}, **changes)


def record(claim: Claim) -> dict[str, Any]:
    """What a run would have recorded: rows of both ways of deployment."""
    number = claim.trial.number
    ways = {
        "rtn": (dict.fromkeys(BITS, 0.9 - 0.1 * number), 1.0),
        "bn_reestimation": (ACCURACIES[number], LOSSES[number]),
    }
    rows = [
        {"split": split, "deploy": deploy, "bits": bits, "accuracy": accuracies[bits], "loss": loss}
        for split in ("val", "test")
        for deploy, (accuracies, loss) in ways.items()
        for bits in BITS
    ]
    return {"run_id": claim.run_id, "config": claim.config.model_dump(mode="json"), "rows": rows}


def finish(sweep: OpenSweep) -> None:
    """Carry out the tuning with made-up records, which are written as runs write them."""

    def recorded(claim: Claim) -> dict[str, Any]:
        found, run = record(claim), sweep.files.run(claim.run_id)
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.record, found)
        entry = {"cell": claim.cell.id, "phase": claim.phase, "trial": claim.trial.number, "params": dict(claim.params)}
        write_json(run.trials, [*(read_json(run.trials) or []), entry])
        return found

    finish_tuning(sweep, recorded)


@pytest.mark.parametrize(
    ("name", "trial", "value"),
    [
        ("target", 1, 0.75),
        ("mean", 2, 0.6875),
        ("worst", 2, 0.5),  # of three equal ones: the lowest loss after the method
        ("val/acc_w3", 2, 0.875),
        ("val/acc_float", 2, 0.5),
        ("val/loss_w2", 2, 1.0),
    ],
)
def test_objectives_are_of_rows_after_it(tmp_path: Path, name: str, trial: int, value: float) -> None:
    sweep = monitored(tmp_path, objective=name)
    finish(sweep)
    chosen = cells(sweep)[TWO]["chosen"]
    assert (chosen["trial"], chosen["value"]) == (trial, value)
    found = read_json(sweep.files.run(chosen["run_id"]).record)
    read = Trial(Cell(TWO, ("ste",), {}, (0, 1), None, {}, ()), trial, found["run_id"], {}, found)
    assert frames.objective_value(read, name) == value


def test_a_cell_may_have_a_rule_of_its_own(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, grid={"monitor.deploy": ["rtn", "bn_reestimation"]})
    finish(sweep)
    chosen = {cell: found["chosen"]["trial"] for cell, found in cells(sweep).items()}
    assert chosen == {
        f"ste,monitor.deploy={deploy},target_bit={bits}": trial
        for deploy, bits, trial in [("rtn", 2, 0), ("rtn", 3, 0), ("bn_reestimation", 2, 1), ("bn_reestimation", 3, 2)]
    }


def test_a_rebuilt_queue_has_the_same_values(tmp_path: Path) -> None:
    sweep = monitored(tmp_path, sampler={"name": "tpe", "n_startup_trials": 9})
    finish(sweep)
    before = {cell: [trial.values for trial in study.trials] for cell, study in sweep.studies.items()}
    (sweep.folder / "study.log").unlink()
    again = load_sweep(sweep.folder)
    plan.top_up(again)
    after = {cell: [trial.values for trial in study.trials] for cell, study in again.studies.items()}
    assert before == after
    assert sorted(before[THREE]) == [[0.5], [0.75], [0.875]]


def printed(what: Any) -> str:
    console = Console(width=200, file=(text := StringIO()))
    console.print(what)
    return text.getvalue()


def test_the_status_and_the_table_say_after_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in ((None, []), (AFTER, ["after", "bn_reestimation"])):
        sweep = monitored(tmp_path / "m") if name else open_sweep(tmp_path / "p")
        finish(sweep)
        for cell in cells(sweep).values():
            for run_id in cell["finals"].values():
                sweep.files.run(run_id).path.mkdir()
                write_json(sweep.files.run(run_id).record, read_json(sweep.files.run(cell["chosen"]["run_id"]).record))
        report = status_report(sweep)
        assert [cell["measured_after"] for cell in report["cells"]] == ["bn_reestimation" if name else "rtn"] * 2
        assert all(word in printed(status.shown(report)) for word in said)
        assert ("after" in printed(status.shown(report))) == bool(said)
        progress.summary(sweep)
        table = capsys.readouterr().out
        assert ("bn_reestimation" in table) == bool(said)
        assert all(" % " in text for text in (table, printed(status.shown(report))))  # in the unit of the test scores
        assert ("│ 50.0 │ 87.5 │ 50.0 │" in " ".join(table.split())) == bool(said), table


# The pruner: what an epoch measures

EPOCH = {
    "val/acc_w2": 0.1,
    "val/acc_w3": 0.2,
    "val/acc_w3_after_bn_reestimation": 0.75,
    "val/loss_w3_after_bn_reestimation": 1.5,
    schema.MONITOR: 0.75,
}


@pytest.mark.parametrize(("name", "value"), [("target", 0.75), ("val/acc_w3", 0.75), ("val/loss_w3", 1.5)])
def test_an_epoch_reports_what_is_measured_after_it(name: str, value: float) -> None:
    assert objective.epoch_value(name, EPOCH, parse({**RUN, "monitor": AFTER})) == value


@pytest.mark.parametrize("name", ["mean", "worst", "val/acc_w2", "val/acc_float"])
def test_what_an_epoch_does_not_measure_is_refused_with_a_pruner(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"after bn_reestimation an epoch is evaluated at the target alone.* pruner"):
        monitored(tmp_path, objective=name, pruner="median", cells=[{**RAW["cells"][0], "grid": {"target_bit": [3]}}])
    monitored(tmp_path, objective="target", pruner="median")


def test_how_trials_are_measured_is_not_searched(tmp_path: Path) -> None:
    search = {"monitor.deploy": ["rtn", "bn_reestimation"]}
    with pytest.raises(UserError, match=r"search: monitor\.deploy decides how trials are measured.* set or grid"):
        open_sweep(tmp_path, cells=[{**RAW["cells"][0], "search": search}])
