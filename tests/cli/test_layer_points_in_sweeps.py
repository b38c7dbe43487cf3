"""Points by layer in a sweep file: checked before anything starts, in objectives, ids of cells, tables, dashboards."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from cli_sweep import BASE, Cli, edited
from studies_common import RAW, TWO, cells, finish_tuning, open_sweep

from harness import dashboard
from harness.cli import progress
from harness.core.errors import UserError
from harness.records.files import write_json
from harness.sweep.cells import expand
from harness.sweep.config import SweepConfig
from harness.sweep.queue import Claim, OpenSweep

HEAD8 = {"name": "head8", "layers": {"*": 2, "layer5": "w8"}}
AT = "base/deploy/bits"


def test_a_sweep_with_them_is_accepted(cli: Cli) -> None:
    cli.accepted(
        cli.file(edited({AT: [2, HEAD8, {"layer1": 4}], "objective": ["val/acc_head8", "val/loss_layer1_w4"]}))
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "layer": (
        {AT: [2, {"*": 4, "layr5": 8}]},
        "cell ste,target_bit=2: deploy.bits: w4-layr5_w8: unknown layer in bits 'layr5'; did you mean 'layer5'?",
    ),
    "layer of the second model": (
        {AT: [2, HEAD8], "grid": {"model.depth": [5, 3]}},
        "cell ste,model.depth=3,target_bit=2: deploy.bits: head8: unknown layer in bits 'layer5'; did you mean 'layer",
    ),
    "no point": (
        {AT: [2, {"layer5": 8}], "cells/0/methods": "oscillation"},
        "deploy.bits: layer5_w8: no point for layer1, layer2, layer3, layer4, which have no quantizer",
    ),
    "bits": ({AT: [2, {"*": 4, "layer5": 1}]}, "deploy.bits.1: {'*': 4, 'layer5': 1}: layers: layer5: 1: no bit-width"),
    "name": ({AT: [{"name": "w4", "layers": {"*": 4}}]}, "name: 'w4' means something else already"),
    "objective": (
        {AT: [2, HEAD8], "objective": "val/acc_haed8"},
        "objective 'val/acc_haed8' is unknown; did you mean 'val/acc_head8'? (legal: target, mean, worst, val/acc_w2",
    ),
    "objective of another cell": (
        {AT: [2], "objective": "val/acc_head8", "cells/1": {**BASE["cells"][0], "set": {"deploy.bits": [HEAD8]}}},
        "objective 'val/acc_head8': val/acc_head8 was not evaluated; add its bits to deploy.bits",
    ),
}


@pytest.mark.parametrize(("edits", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_before_anything_starts(cli: Cli, edits: dict[str, Any], said: str) -> None:
    assert said in cli.refusal(cli.file(edited(deepcopy(edits))))


def test_ids_of_cells_are_readable_and_those_of_old_sweeps_the_same() -> None:
    def ids(key: str, value: Any) -> list[str]:
        return [cell.id for cell in expand(SweepConfig.model_validate(edited({"cells/0/set": {key: value}})), False)]

    assert ids("deploy.bits", [2, HEAD8, {"*": 4}])[0] == "ste,target_bit=2,deploy.bits=2-head8-all_w4"
    assert ids("deploy.bits", [2, 8])[0] == "ste,target_bit=2,deploy.bits=2-8"
    assert ids("data.augment", {"crop_padding": 4})[0] == "ste,target_bit=2,data.augment=4"
    assert ids("model.hidden", [64, 32])[0] == "ste,target_bit=2,model.hidden=64-32"


def swept(root: Path, layers: list[Any], **changes: Any) -> OpenSweep:
    base = {**deepcopy(RAW["base"]), "deploy": {"bits": [2, 3, HEAD8], "scale": "recalibrate"}}
    sweep = open_sweep(root, base=base, **changes)

    def recorded(claim: Claim) -> dict[str, Any]:
        number = claim.trial.number
        rows: list[dict[str, Any]] = [
            {"split": split, "deploy": "rtn", "bits": bits, "accuracy": 0.5, "loss": 1.0}
            for split in ("val", "test")
            for bits in (2, 3, "head8", "float")
        ]
        for row in rows:
            if row["bits"] == "head8":
                row |= {"layers": layers[number % len(layers)], "accuracy": 0.25 + 0.125 * number, "loss": 2.0 - number}
        record = {"rows": rows, "config": claim.config.model_dump(mode="json"), "run_id": claim.run_id}
        sweep.files.run(claim.run_id).path.mkdir(parents=True, exist_ok=True)
        write_json(sweep.files.run(claim.run_id).record, record)
        return record

    finish_tuning(sweep, recorded)
    return sweep


@pytest.mark.parametrize(
    ("objective", "value"), [("val/acc_head8", 0.5), ("val/loss_head8", 0.0), ("mean", 0.5), ("worst", 0.5)]
)
def test_objectives_may_be_of_them(tmp_path: Path, objective: str, value: float) -> None:
    chosen = cells(swept(tmp_path, [HEAD8["layers"]], objective=objective))[TWO]["chosen"]
    assert (chosen["trial"], chosen["value"]) == (2, value)


def test_an_objective_of_another_name_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"objective 'val/acc_head9' is unknown; did you mean 'val/acc_head8'"):
        swept(tmp_path, [HEAD8["layers"]], objective="val/acc_head9")
    with pytest.raises(UserError, match="val/acc_w5 was not evaluated"):
        swept(tmp_path, [HEAD8["layers"]], objective="val/acc_w5")


def test_the_table_has_one_column_for_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = swept(tmp_path, [{"*": 2, "layer5": 8}, {"*": 2, "head": 8}], tune={"trials": 2})
    for cell in cells(sweep).values():
        for place, run_id in enumerate(cell["finals"].values()):
            source = sweep.studies[cell["id"]].trials[place].user_attrs["run_id"]
            sweep.files.run(run_id).path.mkdir(exist_ok=True)
            sweep.files.run(run_id).record.write_bytes(sweep.files.run(source).record.read_bytes())
    progress.summary(sweep)
    table = capsys.readouterr().out
    assert table.count("head8") == 1
    assert "│  50.0 │  50.0 │  31.2 │  50.0 │" in table, table


def test_a_dashboard_has_a_curve_for_each() -> None:
    spec = SweepConfig.model_validate(edited({AT: [4, HEAD8], "grid": {"model.width": [8, 16]}}))
    facts = dashboard._facts(spec, expand(spec, False))
    assert [point.key for point in facts.points] == ["w2", "w3", "w4", "head8", "float"]
    assert [point.key for point in facts.epochs] == ["w2", "w3", "w4", "head8", "float"]
