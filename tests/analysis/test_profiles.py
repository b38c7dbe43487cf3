"""Interquartile means and performance profiles, against numbers worked out by hand and against scipy."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import trim_mean
from synthetic_sweep import MEASURED, SweepWriter, quickstart

from analysis import profiles
from analysis.disk_source import load_results
from analysis.figures import NothingToDraw, performance_profile
from analysis.grouping import make_groups
from analysis.series import Group
from harness.sweep.config import plain, read_sweep

ROOT = Path(__file__).resolve().parents[2]


def groups_of(root: Path, *names: str) -> list[Group]:
    return [group for name in names for group in make_groups(load_results(root, name))]


def other_model(
    root: Path, name: str, skip: tuple[tuple[str, int | None], ...] = (), model: str = "net"
) -> SweepWriter:
    """The quickstart sweep of another model, 2 points worse throughout."""
    sweep = SweepWriter(root, name)
    for method, target in MEASURED:
        if (method, target) not in skip:
            numbers = [(mean - 2, deviation) for mean, deviation in MEASURED[method, target]]
            sweep.add(method, target, numbers, model={"name": model})
    return sweep


def exact(root: Path, name: str, model: str, whole: float, two: float) -> SweepWriter:
    """Float training and QAT without spread: `whole` % with float weights, QAT `two` % at 2 bits."""
    sweep = SweepWriter(root, name)
    sweep.add("none", None, [(whole / 2, 0), *[(whole, 0)] * 4], model={"name": model})
    sweep.add("ste", 2, [(two, 0), *[(whole, 0)] * 4], model={"name": model})
    return sweep


def test_interquartile_mean_by_hand() -> None:
    assert profiles.interquartile_mean(np.array([100.0, 3, 1, 2, 4, 5, 6, -100])) == 3.5  # of 2, 3, 4, 5
    assert profiles.interquartile_mean(np.array([1.0, 2, 9])) == 4  # too few to cut any
    assert profiles.interquartile_mean(np.array([7.0])) == 7


@pytest.mark.parametrize("number", [4, 8, 40, 7, 13])
def test_interquartile_mean_is_scipys_trimmed_mean(number: int) -> None:
    scores = np.random.default_rng(number).normal(size=(3, number))
    # The order of summation differs.
    assert profiles.interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25, axis=1), rel=1e-12)


def test_profile_by_hand() -> None:
    scores = np.array([[0.5, 0.9, 0.9, 1.0], [0.0, 0.0, 2.0, 0.9]])
    found = profiles.profile(scores, np.array([0.0, 0.5, 0.6, 0.9, 0.95, 1.0, 1.1]))
    assert found.tolist() == [[1, 1, 0.75, 0.75, 0.25, 0.25, 0], [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]]
    assert profiles.profile(scores[0], np.array([0.95])).tolist() == [0.25]


def test_seeds_are_resampled_within_their_task() -> None:
    scores = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 20.0]), "constant": np.full(4, 7.0)}
    samples = profiles.resample(scores, 500)
    assert samples.shape == (500, 9)
    assert [set(part.ravel()) for part in np.split(samples, [3, 5], axis=1)] == [{1, 2, 3}, {10, 20}, {7}]
    assert len({tuple(row) for row in samples[:, :3]}) == 27  # every combination of three seeds out of three
    # Constant tasks have no spread, however far they lie apart.
    steady = {"low": np.full(3, 0.1), "high": np.full(3, 0.9)}
    low, high = profiles.interval(profiles.interquartile_mean(profiles.resample(steady)))
    assert low == high == profiles.interquartile_mean(profiles.pooled(steady))
    low, high = profiles.interval(profiles.profile(profiles.resample(steady), np.array([0.05, 0.5, 0.95])))
    assert low.tolist() == high.tolist() == [1, 0.5, 0]


def test_interval_of_a_mean_of_two() -> None:
    # Two seeds, 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so 95 % reach from 0 to 1.
    samples = profiles.resample({"a": np.array([0.0, 1.0])})
    assert samples.shape == (2000, 2)
    assert profiles.interval(profiles.interquartile_mean(samples)) == (0, 1)
    assert samples.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(samples.size))  # four standard errors


def test_scores_are_relative_to_the_groups_own_float_training(tmp_path: Path) -> None:
    sweep = exact(tmp_path, "a", "one", 80, 60)
    for row in (row for record in sweep.records.values() for row in record["rows"] if row["split"] == "val"):
        row["accuracy"] = 0.1  # not what is scored
    sweep.write()
    exact(tmp_path, "b", "two", 50, 40).write()
    found = profiles.collect(groups_of(tmp_path, "a", "b"))
    assert found.relative
    assert found.notes == ()
    assert found.tasks == [f"{model} on digits, {bits} bits" for model in ("one", "two") for bits in (2, 3, 4, 8)]
    assert found.scores["ste@2"]["one on digits, 2 bits"] == pytest.approx([0.75] * 3)
    assert found.scores["ste@2"]["two on digits, 2 bits"] == pytest.approx([0.8] * 3)
    assert found.scores["float"]["two on digits, 2 bits"] == pytest.approx([0.5] * 3)
    assert set(found.seeds()) == {3}


def test_without_float_training_scores_are_accuracies(tmp_path: Path) -> None:
    exact(tmp_path, "a", "one", 80, 60).write()
    sweep = exact(tmp_path, "b", "two", 50, 40)
    sweep.cells = {key: cell for key, cell in sweep.cells.items() if "ste" in key}
    sweep.write()
    found = profiles.collect(groups_of(tmp_path, "a", "b"))
    assert not found.relative
    assert found.scores["ste@2"]["one on digits, 2 bits"] == pytest.approx([60.0] * 3)
    assert "accuracies in %" in found.notes[0]
    assert found.notes[0].endswith("for two on digits")


def test_two_series_of_float_training_are_no_reference(tmp_path: Path) -> None:
    exact(tmp_path, "a", "one", 80, 60).write()
    sweep = exact(tmp_path, "b", "two", 50, 40)
    for cell in ({"train.epochs": 1}, {"train.epochs": 2}):
        identifier = sweep.add("none", None, [(40, 0)] * 5, grid=cell, model={"name": "two"})
        for seed in (0, 1, 2):  # under ids of their own
            run_id = f"{identifier}-{seed}"
            record = sweep.run_of(identifier, seed)
            sweep.records[run_id] = {**record, "run_id": run_id}
            sweep.metrics[run_id] = []
            sweep.cells[identifier]["finals"][str(seed)] = run_id
    del sweep.cells["none-target_bit=None"]
    sweep.write()
    found = profiles.collect(groups_of(tmp_path, "a", "b"))
    assert not found.relative
    assert found.notes[0].endswith("for two on digits")


def test_a_method_that_lacks_a_task_is_named_and_left_out(tmp_path: Path) -> None:
    quickstart(tmp_path, "a").write()
    sweep = other_model(tmp_path, "b", skip=(("ste", 3),))
    for seed in (0, 1, 2):
        rows = sweep.run_of("oscillation-target_bit=3", seed)["rows"]
        rows[:] = [row for row in rows if row["bits"] != 4]
    rows = sweep.run_of("oscillation-target_bit=2", 1)["rows"]  # one seed less is no reason
    rows[:] = [row for row in rows if row["bits"] != 4]
    sweep.write()
    drawing = performance_profile.draw(groups_of(tmp_path, "a", "b"))
    assert set(drawing.frame["series"]) == {"float", "ste@2", "oscillation@2"}
    assert drawing.notes[0].startswith("ste@3 left out: no seed in 4 of 8 tasks (net on digits, 2 bits; ")
    assert drawing.notes[1] == "oscillation@3 left out: no seed in 1 of 8 tasks (net on digits, 4 bits)"
    assert any(note.startswith("tasks have 2 to 3 seeds") for note in drawing.notes)
    title = drawing.figure.legends[0].get_title().get_text()
    assert title.startswith("8 tasks (model, data set, bit-width), n = 2 to 3 seeds each")
    counts = drawing.frame.groupby("series")["n_scores"].first()
    assert counts.to_dict() == {"float": 24, "ste@2": 24, "oscillation@2": 23}


def test_only_the_first_way_of_deployment_counts(tmp_path: Path) -> None:
    for name, model in (("a", "one"), ("b", "two")):
        sweep = exact(tmp_path, name, model, 80, 60)
        for record in sweep.records.values():
            record["rows"] += [{**row, "deploy": "gptq", "accuracy": 0.1} for row in record["rows"]]
        sweep.write()
    found = profiles.collect(groups_of(tmp_path, "a", "b"))
    assert found.scores["ste@2"]["one on digits, 2 bits"] == pytest.approx([0.75] * 3)


def test_a_sweep_that_takes_no_part_names_no_method(tmp_path: Path) -> None:
    """Nor changes a colour: a labelled one, read first, has each training under two ways of deployment."""
    quickstart(tmp_path, "b").write()
    other_model(tmp_path, "c").write()
    small = exact(tmp_path, "a", "two", 50, 40)
    for record in small.records.values():
        record["rows"] += [{**row, "deploy": "gptq"} for row in record["rows"]]
    small.write()
    spec = plain(read_sweep(ROOT / "sweeps/quickstart.yaml")) | {"label": "reduced"}
    (small.folder / "sweep.json").write_text(json.dumps(spec))
    alone, beside = (performance_profile.draw(groups_of(tmp_path, *names)).frame for names in ("bc", "abc"))
    assert set(alone["method"]) == {"float", "ste", "oscillation"}
    pd.testing.assert_frame_equal(beside, alone)


def test_nothing_to_draw(tmp_path: Path) -> None:
    quickstart(tmp_path, "a").write()
    quickstart(tmp_path, "again").write()
    with pytest.raises(NothingToDraw, match="one model on one data set"):
        performance_profile.draw(groups_of(tmp_path, "a"))
    with pytest.raises(NothingToDraw, match="one model on one data set"):
        performance_profile.draw(groups_of(tmp_path, "a", "again"))
    with pytest.raises(NothingToDraw):
        performance_profile.draw([])
    other_model(tmp_path, "b", skip=tuple(method for method in MEASURED if method != ("ste", 2))).write()
    with pytest.raises(NothingToDraw, match=r"fewer than two methods .*float left out: no seed in 4 of 8 tasks"):
        performance_profile.draw(groups_of(tmp_path, "a", "b"))


def test_one_model_in_two_sweeps_is_two_tasks(tmp_path: Path) -> None:
    exact(tmp_path, "a", "one", 80, 60).write()
    exact(tmp_path, "b", "one", 80, 40).write()
    exact(tmp_path, "c", "two", 50, 40).write()
    found = profiles.collect(groups_of(tmp_path, "a", "b", "c"))
    assert found.tasks[::4] == ["one on digits (a), 2 bits", "one on digits (b), 2 bits", "two on digits, 2 bits"]


def test_of_one_model_in_two_sweeps_that_with_more_methods_counts(tmp_path: Path) -> None:
    exact(tmp_path, "a", "one", 80, 60).write()
    control = SweepWriter(tmp_path, "b")
    control.add("ste", 2, [(60, 0)] * 5, model={"name": "one"})
    control.write()
    single = quickstart(tmp_path, "c")
    single.objective = ["worst"]  # more methods, but tuned for something else
    for record in single.records.values():
        record["config"]["model"] = {"name": "one"}
    single.write()
    exact(tmp_path, "d", "two", 50, 40).write()
    found = profiles.collect(groups_of(tmp_path, "a", "b", "c", "d"))
    assert found.tasks[::4] == ["one on digits, 2 bits", "two on digits, 2 bits"]
    assert set(found.scores) == {"float", "ste@2"}
    assert found.relative
    assert found.notes[0].endswith("one on digits (b); one on digits (c)")


def test_a_labelled_study_does_not_leave_few_methods_to_be_compared(tmp_path: Path) -> None:
    quickstart(tmp_path, "a").write()
    other_model(tmp_path, "b").write()
    small = exact(tmp_path, "small", "two", 50, 40).write()  # two methods
    groups = groups_of(tmp_path, "a", "small", "b")
    assert len(profiles.collect(groups).scores) == 2
    spec = plain(read_sweep(ROOT / "sweeps/quickstart.yaml")) | {"label": "reduced"}
    (small.folder / "sweep.json").write_text(json.dumps(spec))
    groups = groups_of(tmp_path, "a", "small", "b")
    found = profiles.collect(groups)
    assert len(found.scores) == len(MEASURED)
    assert found.notes == ("left out, since a label sets it apart: two on digits (reduced) (small)",)
    assert [group.sweep for group in found.groups] == ["a", "b"]  # whose runs the figure is then said to be of
    assert profiles.collect(groups[:2]).notes[0].startswith("oscillation@2 left out")  # of two, both are compared


def test_figure_reads_in_one_order_and_repeats_to_the_bit(tmp_path: Path) -> None:
    quickstart(tmp_path, "a").write()
    other_model(tmp_path, "b").write()
    groups = groups_of(tmp_path, "a", "b")
    figure, frame, *_ = performance_profile.draw(groups)
    means = frame[frame["panel"] == "interquartile mean"]
    order = list(means["series"])
    assert order[-1] == "float"
    assert list(means["value"][:-1]) == sorted(means["value"][:-1], reverse=True)
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == order
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [order[i] for i in (0, 3, 1, 4, 2)]  # filled column by column, 3 and 2 in a line
    assert (means["low"] < means["value"]).all()
    assert (means["value"] < means["high"]).all()
    curves = frame[frame["panel"] == "profile"]
    assert (curves["low"] <= curves["value"] + 1e-12).mean() > 0.99  # a percentile interval may miss its point
    for _, curve in curves.groupby("series"):
        assert curve["value"].is_monotonic_decreasing
        assert (curve["value"].iloc[0], curve["value"].iloc[-1]) == (1, 0)
    again = performance_profile.draw(groups).frame
    assert again.to_csv() == frame.to_csv()
    alone = profiles.collect(groups).scores["ste@2"]
    low, _ = profiles.interval(profiles.interquartile_mean(profiles.resample(alone)))
    assert means.set_index("series").loc["ste@2", "low"] == low  # whatever other methods there are


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    for name, model in (("a", "one"), ("b", "two")):
        sweep = SweepWriter(tmp_path, name, seeds=(0,))
        for method, target in MEASURED:
            sweep.add(method, target, model={"name": model})
        sweep.write()
    drawing = performance_profile.draw(groups_of(tmp_path, "a", "b"))
    assert drawing.frame[["low", "high"]].isna().all(axis=None)
    assert "one seed, no interval" in drawing.figure.legends[0].get_title().get_text()


def test_axis_stretches_the_top_only_where_scores_crowd_there() -> None:
    crowded = {"m": {"t": np.array([0.2, 0.95, 0.97, 0.98, 1.0])}}
    axis = performance_profile._Axis.fitting(profiles.Benchmark(crowded, True, ()))
    assert axis.log
    scores = np.array([0.1, 0.5, 0.99, 1.0])
    assert axis.score(axis.position(scores)) == pytest.approx(scores)
    ends = axis.thresholds()[[0, -1]]
    assert ends[0] < 0.2
    assert ends[1] > 1
    spread = {"m": {"t": np.array([20.0, 40, 60, 80])}}
    assert not performance_profile._Axis.fitting(profiles.Benchmark(spread, False, ())).log


def test_fifty_tasks_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    scores = {f"m{i}": {f"t{j}": rng.uniform(size=10) for j in range(50)} for i in range(10)}
    began = time.process_time()
    for own in scores.values():
        samples = profiles.resample(own)
        profiles.interval(profiles.interquartile_mean(samples))
        profiles.interval(profiles.profile(samples, np.linspace(0, 1, 401)))
    assert time.process_time() - began < 2 * 2  # twice the goal: the machine may be shared
