"""`--dry-run --estimate`: each distinct network of a sweep is measured once, and what the sweep takes follows."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cli_sweep import BASE, SEARCH, Cli, edited

from harness.cli import estimate
from harness.cli.there import There, look
from harness.launch import main
from harness.records.files import write_json
from harness.records.run_directory import RunDirectory
from harness.sweep import plan
from harness.sweep.cells import expand
from harness.sweep.config import SweepConfig
from harness.sweep.queue import OpenSweep, open_sweep
from harness.sweep.samplers import distribution
from harness.training import cost
from harness.training.config import RunConfig, complete
from harness.training.cost import Cost
from harness.training.pretrain import parent_of

#: 2 s an epoch, 6 s a run of one epoch, 8 s a final one.
COST = Cost(start_s=3.0, step_s=0.1, evaluation_s=1.0, steps=10, test_over_val=2.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that are measured, in place of measuring them."""
    found: list[RunConfig] = []

    def measure(config: RunConfig) -> Cost:
        found.append(config)
        return COST

    monkeypatch.setattr(cost, "measure", measure)
    return found


def lines(capsys: pytest.CaptureFixture[str], edits: dict[str, Any], *where: Any) -> list[str]:
    """What is printed of a sweep."""
    spec = SweepConfig.model_validate(edited(edits))
    estimate.show(spec, expand(spec), *where)
    return capsys.readouterr().out.splitlines()[1:]


def test_a_run_is_its_start_its_epochs_and_its_record() -> None:
    assert COST.epoch_s == 2.0
    assert COST.run_s(1, final=False) == 3 + 2 + 1
    assert COST.run_s(4, final=True) == 3 + 8 + 3
    assert Cost(0, 1, 1, steps=1, deploys=2, test_over_val=0.5).run_s(1, final=True) == 2 + 3


def test_cells_that_differ_in_numbers_are_measured_once(
    capsys: pytest.CaptureFixture[str], measured: list[RunConfig]
) -> None:
    first, second, total = lines(capsys, {}, "local", 2, ("cpu0", "cpu1"))
    said = f"step 100 ms, epoch of {COST.steps} steps 2 s, run 8 s, all 3 runs 20 s"
    assert first.endswith(said)
    assert second.endswith(said)
    assert total == "40 s of runs one after another; 20 s with 2 at once"
    assert len(measured) == 1
    assert measured[0].runtime.threads is not None


def test_another_network_batch_or_method_is_measured_by_itself(
    capsys: pytest.CaptureFixture[str], measured: list[RunConfig]
) -> None:
    lines(capsys, {"cells/0/grid/train.batch_size": [32, 64], "cells/0/grid/model.width": [8, 16]}, "slurm", 4, ())
    assert len(measured) == 4
    measured.clear()
    lines(capsys, {SEARCH: {"model.width": [8, 16]}}, "slurm", 4, ())
    assert len(measured) == 2
    assert {config.runtime.threads for config in measured} == {None}, "a Slurm job has threads of its own"


def test_runs_that_share_a_gpu_do_not_count_as_at_once(
    capsys: pytest.CaptureFixture[str], measured: list[RunConfig]
) -> None:
    *_, total = lines(capsys, {}, "local", 4, ("gpu0.0", "gpu1.0", "gpu0.1", "gpu1.1"))
    assert total == "40 s of runs one after another; 20 s with 2 at once"


def test_what_ends_runs_early_is_said(capsys: pytest.CaptureFixture[str], measured: list[RunConfig]) -> None:
    assert lines(capsys, {"base/train/patience": 1}, "local", 2, ())[-1].startswith("at most: patience")
    assert lines(capsys, {"pruner": "median"}, "local", 2, ())[-1].startswith("at most: patience and the pruner")


def test_float_networks_to_start_from_are_counted_once(
    capsys: pytest.CaptureFixture[str], measured: list[RunConfig]
) -> None:
    *_, parents, total = lines(capsys, {"base/pretrain": {"epochs": 2}}, "local", 1, ("cpu0",))
    assert parents == "  float networks to start from: 2, 16 s"  # of the tuning seed and the final seed, 8 s each
    assert total == "56 s of runs one after another; 56 s with 1 at once"


def finished(root: Path, cell: str, edits: dict[str, Any]) -> None:
    """Launch a sweep of which the tuning of a cell is over, and nothing else."""
    opened = open_sweep(SweepConfig.model_validate(edited(edits)), root)
    plan.top_up(opened)
    study = opened.studies[cell]
    for _ in range(opened.spec.tune.trials):
        study.tell(study.ask(distributions(opened, cell)), 0.5)
    plan.top_up(opened)


def distributions(opened: OpenSweep, cell: str) -> dict[str, Any]:
    (space,) = (each.search for each in opened.cells if each.id == cell)
    return {name: distribution(dimension) for name, dimension in space.items()}


@pytest.mark.parametrize("added", [[2, 3], [2, 3, 4]], ids=["as launched", "a cell more"])
def test_runs_that_are_over_are_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: list[RunConfig], added: list[int]
) -> None:
    finished(tmp_path, "ste,target_bit=2", {})
    spec = SweepConfig.model_validate(edited({"cells/0/grid/target_bit": added}))
    estimate.show(spec, expand(spec), "local", 1, ("cpu0",), look(spec, tmp_path))
    head, first, second, *others, total = capsys.readouterr().out.splitlines()
    assert head.startswith(f"2 of {3 * len(added)} runs are over; what is left, measured on this machine")
    assert first.endswith("run 8 s, 1 of 3 runs left, 8 s")
    assert [line.endswith("run 8 s, all 3 runs 20 s") for line in (second, *others)] == [True] * (len(added) - 1)
    assert total.startswith(f"{8 + 20 * (len(added) - 1)} s of runs one after another")


def test_a_cell_of_which_nothing_is_left_is_not_measured_nor_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: list[RunConfig]
) -> None:
    spec = SweepConfig.model_validate(edited({"base/pretrain": {"epochs": 2}}))
    finished(tmp_path, "ste,target_bit=2", {"base/pretrain": {"epochs": 2}})
    there = look(spec, tmp_path)
    assert there is not None
    done = dict.fromkeys(["ste,target_bit=2", "ste,target_bit=3"], (0, 0))
    for left, lines in (({"ste,target_bit=3": (0, 1)}, ["nothing is left", "1 of 3 runs left, 8 s"]), ({}, [])):
        with patch.object(There, "left_by_cell", return_value=done | left):
            estimate.show(spec, expand(spec), "local", 1, ("cpu0",), there)
        head, *said = capsys.readouterr().out.splitlines()
        assert [line.endswith(end) for line, end in zip(said, lines, strict=False)] == [True] * len(lines)
        assert head.startswith("5 of 6 runs are over" if left else "nothing is left to run of 6 runs")
    weights = there.sweep.files.pretrained / parent_of(expand(spec)[0].config({}, 1000, "tune")).run_id()
    weights.mkdir(parents=True)
    write_json(RunDirectory(weights).record, {})
    with patch.object(There, "left_by_cell", return_value=done | {"ste,target_bit=3": (1, 1)}):
        estimate.show(spec, expand(spec), "local", 1, ("cpu0",), there)
    assert "  float networks to start from: 1, 8 s" in capsys.readouterr().out


def test_a_real_network_is_measured_and_nothing_is_begun(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[Cost] = []
    real = cost.measure
    monkeypatch.setattr(cost, "MEASURE_S", 0.0)
    monkeypatch.setattr(cost, "measure", lambda config: costs.append(real(config)) or costs[-1])
    small = edited({"base/data": {"name": "digits", "train_fraction": 0.1}, "base/train/batch_size": 16})
    assert main([str(cli.file(small)), "--root", str(cli.root), "--dry-run", "--estimate"]) == 0
    assert "of runs one after another" in capsys.readouterr().out
    assert not cli.root.exists()
    (found,) = costs
    assert found.steps == 8  # of 129 images: a last batch of one is left out
    assert 0 < found.step_s < 5
    assert 0 < found.evaluation_s < 60
    assert found.test_over_val > 1


@pytest.mark.parametrize(("start_s", "times"), [(1.0, [2, 1]), (cost.COLD_S, [1, 1])])
def test_what_a_process_does_once_is_left_out(
    monkeypatch: pytest.MonkeyPatch, start_s: float, times: list[int]
) -> None:
    found: list[float] = []

    def once(config: RunConfig) -> Cost:
        found.append(start_s / (1 + len(found)))
        return Cost(found[-1], 0.1, 1.0, steps=1)

    monkeypatch.setattr(cost, "_cold", [True])
    monkeypatch.setattr(cost, "_measured", once)
    config = complete({**BASE["base"], "methods": "ste", "target_bit": 2})
    before = 0
    for count in times:
        assert cost.measure(config).start_s == found[-1]
        assert len(found) - before == count
        before = len(found)


def test_without_the_data_nothing_is_measured(cli: Cli, measured: list[RunConfig]) -> None:
    absent = edited({"base/data": {"name": "cifar10", "root": "nowhere"}})
    assert "data.root: nothing is at nowhere" in cli.refusal(cli.file(absent), "--dry-run", "--estimate")
    assert not measured


def test_an_estimate_is_for_a_dry_run(cli: Cli) -> None:
    assert "--estimate is for --dry-run" in cli.refusal(cli.file(edited({})), "--estimate")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0072, "7.2 ms"), (41.0, "41 s"), (720.0, "12 min"), (12_600.0, "3.5 h"), (786_240.0, "9.1 days")],
)
def test_durations_have_a_unit_that_suits_them(seconds: float, text: str) -> None:
    assert estimate.shown(seconds) == text
