"""Trials that the pruner stopped: in frames, files and figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_cost import Shape
from analysis_cost import write_sweep as write_large
from blank_pictures import blank_pictures

from analysis import frames, make_figures, pruned
from analysis.figures import pareto, strength_sensitivity
from analysis.library import load

CELL = "oscillation,target_bit=3"


def stopped(root: Path, epochs: list[dict[str, Any]], config: bool = True) -> list[str]:
    """A sweep of which a cell had two of three trials pruned after these epochs; their runs."""
    write_large(root, Shape(trials=3, seeds=2, epochs=4, layers=1))
    gone = load(root).trials.query(f"cell == '{CELL}' and not chosen")["run_id"].to_list()
    for run_id in gone:
        folder = root / "large/runs" / run_id
        if config:
            written = {"config": json.loads((folder / "record.json").read_text())["config"]}
            (folder / "config.json").write_text(json.dumps(written))
        (folder / "record.json").unlink()
        (folder / "status.json").write_text('{"state": "pruned"}')
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    return gone


#: All points in the last of two epochs.
EPOCHS = [
    {"epoch": 1, "val/acc_w3": 0.2, "val/monitor": 0.2},
    {"epoch": 2, "val/monitor": 0.4, **{f"val/acc_{at}": 0.5 for at in ("w2", "w4", "w5", "w6", "w8", "float")},
     "val/acc_w3": 0.4},
]  # fmt: skip


def test_pruned_trials_have_what_they_last_reported(tmp_path: Path) -> None:
    gone = stopped(tmp_path, EPOCHS)
    trials = load(tmp_path).trials.set_index("run_id")
    assert list(trials.columns[5:8]) == ["state", "last_epoch", "value"]
    own = trials.loc[gone]
    assert own["last_epoch"].to_list() == [2, 2]
    assert own["value"].to_list() == [0.4, 0.4]
    assert own[["at_target", "w3", "worst", "w2", "float", "mean_of_others"]].iloc[0].to_list() == [
        40,
        40,
        40,
        50,
        50,
        50,
    ]
    assert set(trials.drop(index=gone)["last_epoch"]) == {4}


def test_means_over_points_that_epochs_are_not_evaluated_at_are_not_given(tmp_path: Path) -> None:
    gone = stopped(tmp_path, EPOCHS[:1])
    own = load(tmp_path).trials.set_index("run_id").loc[gone[0]]
    assert (own["last_epoch"], own["value"], own["at_target"]) == (1, 0.2, 20)
    assert own[["worst", "mean_of_others", "w2", "float"]].isna().all()


def test_archives_without_a_configuration_have_the_monitor(tmp_path: Path) -> None:
    gone = stopped(tmp_path, EPOCHS, config=False)
    own = load(tmp_path).trials.set_index("run_id").loc[gone[0]]
    assert (own["last_epoch"], own["value"]) == (2, 0.4)
    assert pd.isna(own["at_target"])


def test_the_last_epoch_of_a_loss_and_of_another_deploy_method(tmp_path: Path) -> None:
    line = {"epoch": 5, "val/loss_w3": 1.5, "val/acc_w3_after_gptq": 0.7}
    stopped(tmp_path, [line])
    results = load(tmp_path)
    trial = results.sweep.pruned[0]
    assert pruned.last(trial, "val/loss_w3").value == 1.5
    trial.config["monitor"] = {"deploy": {"name": "gptq"}}
    assert pruned.last(trial, "target").value == 0.7
    assert pruned.last(trial, "worst").value == 0.7, "of what epochs measured"
    assert pruned.last(trial, "val/acc_w8").value is None


def test_scores_of_trials_are_those_after_the_deploy_method_that_chose(tmp_path: Path) -> None:
    stopped(tmp_path, [{"epoch": 5, "val/acc_w3": 0.2, "val/acc_w3_after_gptq": 0.7, "val/acc_w2": 0.1}])
    before = load(tmp_path).groups[0]
    assert not frames.chosen_after(before)
    for path in (tmp_path / "large/runs").glob("*/record.json"):
        record = json.loads(path.read_text())
        record["config"]["monitor"] = {"deploy": {"name": "gptq"}}
        better = [{**row, "deploy": "gptq", "accuracy": row["accuracy"] / 2 + 0.5} for row in record["rows"]]
        record["rows"] += [row for row in better if row["split"] == "val"]
        path.write_text(json.dumps(record))
    group = load(tmp_path).groups[0]
    rounded, after = (frames.trials_frame(each)["at_target"] for each in (before, group))
    assert after.to_list() == pytest.approx((rounded / 2 + 50).to_list())
    told = "validation scores are those after gptq, by which epochs and trials were chosen"
    assert told in strength_sensitivity.draw(group).notes
    assert told in pareto.draw(group).notes
    trial = load(tmp_path).sweep.pruned[0]
    trial.config["monitor"] = {"deploy": {"name": "gptq"}}
    scores = pruned.last(trial, "target").scores
    assert (scores[3], scores[2]) == (70, 10), "where an epoch has it"


def test_files_and_figures_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = stopped(tmp_path, EPOCHS)
    figure = load(tmp_path).plot("strength_sensitivity")
    crosses = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
    assert [np.asarray(line.get_ydata()).tolist() for line in crosses] == [[40, 40]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "pruned: at the target, last epoch"
    blank_pictures(monkeypatch)
    make_figures.main(["--root", str(tmp_path)])
    written = pd.read_csv(tmp_path / "large/figures/trials.csv", dtype={"run_id": str}).set_index("run_id")
    assert set(written.loc[gone, "state"]) == {"pruned"}
    assert written.loc[gone, "last_epoch"].to_list() == [2, 2]
    assert len(written) == 30
    points = pd.read_csv(tmp_path / "large/figures/strength_sensitivity.csv")
    assert (points["state"] == "pruned").sum() == 2


def test_settings_with_too_few_trials_are_named(tmp_path: Path) -> None:
    write_large(tmp_path, Shape(trials=3, seeds=2, epochs=1, layers=1))
    (group,) = load(tmp_path).groups
    own = [trial for trial in group.trials if trial.cell.id == CELL]
    assert not any("left out" in note for note in strength_sensitivity.draw(group).notes)
    further = [replace(trial, params={**trial.params, "oscillation.pull": 1.0 + trial.number}) for trial in own]
    others = tuple(trial for trial in group.trials if trial.cell.id != CELL)
    few = replace(group, trials=(*others, *further[:2], own[2]))
    assert "left out, with fewer than 3 trials: oscillation.pull" in strength_sensitivity.draw(few).notes
    enough = replace(group, trials=(*others, *further))
    assert not any("left out" in note for note in strength_sensitivity.draw(enough).notes)


def test_pruned_trials_are_among_the_trials(tmp_path: Path) -> None:
    write_large(tmp_path, Shape(trials=3, seeds=2, epochs=1, layers=1))
    before = load(tmp_path).trials
    assert set(before["state"]) == {"complete"}
    assert (100 * before["value"]).to_list() == pytest.approx(before["at_target"].to_list()), "the objective is target"
    gone = before[(before["cell"] == "ste,target_bit=3") & ~before["chosen"]]
    for run_id in gone["run_id"]:
        (tmp_path / "large/runs" / run_id / "record.json").unlink()
        (tmp_path / "large/runs" / run_id / "status.json").write_text('{"state": "pruned"}')
    results = load(tmp_path)
    assert f"{len(before) - len(gone)} trials, {len(gone)} pruned" in repr(results)
    after = results.trials
    same = ["cell", "method", "target_bit", "trial", "run_id", "chosen", "group"]
    same += [name for name in before if name.startswith(frames.PARAMETER)]
    pd.testing.assert_frame_equal(after[same], before[same])
    ended = after[after["state"] == "pruned"]
    assert ended["run_id"].to_list() == gone["run_id"].to_list()
    assert ended[["value", "at_target", "worst", "float"]].isna().all(axis=None)
    scores = after.drop(ended.index)
    pd.testing.assert_frame_equal(scores, before.drop(gone.index), check_dtype=False)
    of_figures = frames.trials_frame(results.groups[0])
    assert list(of_figures) == [name for name in before if name not in ("state", "last_epoch", "value", "group")], (
        "trials.csv"
    )
    assert len(of_figures) == len(scores)
