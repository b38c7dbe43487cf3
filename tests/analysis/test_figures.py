"""The figures of layers, thresholds and tuning trials: their points against the records they come from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import pytest
from analysis_cost import Shape, write_sweep
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from synthetic_sweep import SweepWriter, quickstart

from analysis import style
from analysis.disk_source import load_results
from analysis.figures import Drawing, NothingToDraw, find_figures
from analysis.figures.pareto import undominated
from analysis.frames import rows_frame, trials_frame
from analysis.grouping import make_groups
from analysis.marks import marks_of
from analysis.series import Group, reading_order
from harness.core.bits import FLOAT
from harness.records import schema

SHAPE = Shape(trials=12, seeds=3, epochs=5, layers=4)
FIGURES = {module.name: module for module in find_figures()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep as launching and running one leaves it."""
    path = tmp_path_factory.mktemp("root")
    write_sweep(path, SHAPE)
    return path


@pytest.fixture(scope="module")
def group(root: Path) -> Group:
    (group,) = make_groups(load_results(root, "large"))
    return group


#: What was put on a canvas: the figure, the group (kept, so that no other has its id), and whether it had titles.
RENDERED: dict[tuple[str, int, bool], Group] = {}


def draw(name: str, group: Group) -> Drawing:
    """A figure, put on a canvas where the same was not yet: that takes most of the time."""
    drawing: Drawing = FIGURES[name].draw(group)
    if (key := (name, id(group), style._titles)) not in RENDERED:
        drawing.figure.canvas.draw()
        RENDERED[key] = group
    plt.close(drawing.figure)
    return drawing


def record_of(group: Group, label: str, seed: int) -> dict[str, Any]:
    (final,) = [f for one in group.series if one.label == label for f in one.finals if f.seed == seed]
    return final.record


def old_group(tmp_path: Path) -> Group:
    """Records without layers, histograms or trials."""
    quickstart(tmp_path).write()
    (group,) = make_groups(load_results(tmp_path, "quickstart"))
    return group


def test_layers_are_means_over_seeds(group: Group, root: Path) -> None:
    frame = draw("layer_oscillation", group).frame
    (one,) = [one for one in group.series if one.label == "lsq@3"]
    key = schema.layer_frequency("layer.2")
    values = [final.epochs()[0][4][key] for final in one.finals]
    chosen = frame[(frame["series"] == "lsq@3") & (frame["layer"] == "layer_2") & (frame["epoch"] == 4)]
    assert chosen["frequency"].item() == pytest.approx(sum(values) / 3, rel=1e-12)
    assert len(frame) == 10 * SHAPE.layers * SHAPE.epochs
    assert list(dict.fromkeys(frame["layer"])) == [f"layer_{i}" for i in range(SHAPE.layers)]  # the network's order


def test_layers_that_nobody_reports(tmp_path: Path) -> None:
    with pytest.raises(NothingToDraw, match="no epoch of a final reports oscillation by layer"):
        draw("layer_oscillation", old_group(tmp_path))


def test_threshold_shares_are_percentages_of_all_weights(group: Group) -> None:
    frame = draw("threshold_distances", group).frame
    counts = [record_of(group, "ste@2", seed)["threshold_histograms"]["2"]["after"] for seed in range(3)]
    own = frame[(frame["series"] == "ste@2") & (frame["when"] == "after")]
    expected = np.mean([[100 * n / sum(seed) for n in seed[:-1]] for seed in counts], axis=0)
    assert own["mean"].to_list() == pytest.approx(expected.tolist())
    assert own["to"].max() == 0.5
    assert set(frame["bits"]) == {2, 3, 4}


def test_clipped_weights_are_said_not_drawn(group: Group) -> None:
    notes = draw("threshold_distances", group).notes
    assert any(note.startswith("ste@2, after: 4.") and "clipped" in note for note in notes)


def test_equal_beginnings_are_drawn_once(group: Group) -> None:
    for one in group.series:
        for final in one.finals:
            for histogram in final.record["threshold_histograms"].values():
                histogram["before"] = [10] * 20 + [0]
    axes = draw("threshold_distances", group).figure.axes[0]
    assert len(axes.patches) == 1


def test_records_without_histograms(tmp_path: Path) -> None:
    with pytest.raises(NothingToDraw, match="no histogram of threshold distances"):
        draw("threshold_distances", old_group(tmp_path))


def test_strength_has_a_point_a_trial_and_marks_the_chosen_one(group: Group) -> None:
    drawing = draw("strength_sensitivity", group)
    assert len(drawing.frame) == 3 * SHAPE.trials
    assert set(drawing.frame["parameter"]) == {"oscillation.strength"}
    assert drawing.frame.groupby("target_bit")["chosen"].sum().to_list() == [1, 1, 1]
    (trial,) = [t for t in group.trials if t.cell.id == "oscillation,target_bit=2" and t.number == 0]
    axes = drawing.figure.axes[0]
    vertical = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert vertical == [trial.params["oscillation.strength"], 0.1, 10.0]
    assert axes.get_xscale() == "log"


def test_strengths_are_drawn_over_the_whole_range_that_was_searched(group: Group) -> None:
    drawing = draw("strength_sensitivity", group)
    assert set(zip(drawing.frame["low"], drawing.frame["high"], strict=True)) == {(0.1, 10.0)}
    for axes in drawing.figure.axes[:3]:
        left, right = axes.get_xlim()
        assert left < 0.1 < 10 < right
    unknown = draw("strength_sensitivity", replace(group, settings=None))
    assert unknown.frame[["low", "high"]].isna().all(axis=None)


def test_where_no_method_has_a_searched_setting_every_searched_one_is_drawn(group: Group) -> None:
    others = replace(group, trials=[trial for trial in group.trials if "oscillation" not in trial.cell.id])
    frame = draw("strength_sensitivity", others).frame
    assert set(frame["parameter"]) == {"train.learning_rate", "train.weight_decay"}
    assert set(frame["method"]) == {"float", "ste", "lsq"}
    assert len(frame) == 2 * len(others.trials)


@pytest.mark.parametrize("name", ["strength_sensitivity", "pareto", "parameter_importance"])
def test_a_sweep_without_trials(name: str, tmp_path: Path) -> None:
    with pytest.raises(NothingToDraw, match=r"no cell searched|no tuning trial"):
        draw(name, old_group(tmp_path))


def test_undominated_by_hand() -> None:
    points = pd.DataFrame({"at_target": [1.0, 2.0, 2.0, 3.0, 0.5, 3.0], "worst": [5.0, 4.0, 4.0, 1.0, 5.0, 0.0]})
    # Equal points do not beat each other; (0.5, 5) loses to (1, 5), and (3, 0) to (3, 1).
    assert undominated(points).tolist() == [True, True, True, True, False, False]


def test_pareto_shows_float_training_at_every_target(group: Group) -> None:
    frame = draw("pareto", group).frame
    own = frame[frame["method"] == FLOAT]
    assert own.groupby("panel").size().to_dict() == {2: 12, 3: 12, 4: 12}
    (trial,) = [t for t in group.trials if t.cell.id == "none" and t.number == 5]
    rows = {row["bits"]: 100 * row["accuracy"] for row in trial.record["rows"]}
    line = own[(own["panel"] == 3) & (own["trial"] == 5)].iloc[0]
    assert line["at_target"] == rows[3]
    assert line["worst"] == min(value for bits, value in rows.items() if bits != FLOAT)


def test_importances_are_those_of_the_study_itself(group: Group) -> None:
    frame = draw("parameter_importance", group).frame
    trials = [trial for trial in group.trials if trial.cell.id == "oscillation,target_bit=3"]
    study = optuna.create_study(direction="maximize")
    ends = {"train.learning_rate": (1e-4, 1e-2), "train.weight_decay": (1e-5, 1e-3), "oscillation.strength": (0.1, 10)}
    distributions = {
        name: optuna.distributions.FloatDistribution(low, high, log=True) for name, (low, high) in ends.items()
    }
    for trial in trials:
        (value,) = [row["accuracy"] for row in trial.record["rows"] if row["bits"] == 3]
        study.add_trial(optuna.trial.create_trial(values=[value], params=trial.params, distributions=distributions))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    own = frame[frame["cell"] == "oscillation,target_bit=3"]
    assert dict(zip(own["parameter"], own["importance"])) == pytest.approx(expected)


def test_importance_of_a_single_parameter_says_nothing(root: Path, tmp_path: Path) -> None:
    for trial in (own := make_groups(load_results(root, "large"))[0]).trials:
        del trial.params["train.weight_decay"], trial.params["train.learning_rate"]
    with pytest.raises(NothingToDraw, match="left out: 10 cells with one searched parameter"):
        draw("parameter_importance", own)


def test_frames_hold_every_row_and_every_trial(root: Path) -> None:
    sweep = load_results(root, "large")
    (group,) = make_groups(sweep)
    rows = rows_frame(sweep)
    assert len(rows) == 10 * (SHAPE.trials * 7 + SHAPE.seeds * 14)
    assert rows[["run_id", "split", "bits"]].duplicated().sum() == 0
    trials = trials_frame(group)
    assert len(trials) == 10 * SHAPE.trials
    assert trials.loc[trials["chosen"], "trial"].to_list() == [0] * 10
    line = trials[(trials["cell"] == "ste,target_bit=2") & (trials["trial"] == 7)].iloc[0]
    assert line["at_target"] == line["w2"]
    assert line["worst"] == min(line[f"w{bits}"] for bits in (2, 3, 4, 5, 6, 8))
    assert line["mean_of_others"] == pytest.approx(np.mean([line[f"w{bits}"] for bits in (3, 4, 5, 6, 8)]))


def test_a_corrupt_trial_is_named_and_left_out(tmp_path: Path) -> None:
    write_sweep(tmp_path, Shape(trials=2, seeds=2, epochs=1, layers=1))
    trial = load_results(tmp_path, "large").trials[0]
    path = tmp_path / "large/runs" / trial.run_id / "record.json"
    record = json.loads(path.read_text())
    record["rows"][0]["accuracy"] = 1.5
    path.write_text(json.dumps(record))
    sweep = load_results(tmp_path, "large")
    assert len(sweep.trials) == 19
    assert sweep.corrupt == [f"{path}: accuracy 1.5 is not in [0, 1]"]


def test_many_ways_to_deploy_a_method_are_told_apart_and_none_is_lost_on_white() -> None:
    ways = ("rtn", "bn_reestimation", "gptq", "adaround", "erq", "daq")
    marks = [
        mark for name in ("oscillation", "float") for mark in marks_of([f"{name}, {way}" for way in ways]).values()
    ]
    assert len(set(marks)) == 12
    assert all(min(to_rgb(mark.color)) < 0.8 for mark in marks)


def test_titles_wider_than_their_figure_are_broken() -> None:
    title = "resnet18 on cifar10 images (reduced: quarter width, 16 pixels, 8 epochs)\nmean over seeds"
    broken = style.title_of(title, Figure(figsize=(3.25, 2)))
    assert broken is not None
    assert max(map(len, broken.split("\n"))) <= 53
    assert broken.replace("\n", " ") == title.replace("\n", " ")
    assert style.title_of(title, Figure(figsize=(6.75, 2))) == title


def test_a_hundred_methods_have_marks_of_their_own() -> None:
    marks = marks_of(["float", *(f"method{i}" for i in range(97)), "lsq", "ste", "oscillation"])
    looks = {(str(mark.color), mark.marker) for mark in marks.values()}
    assert len(looks) == len(marks) == 101


@pytest.mark.parametrize("method", ["kure", "satnl", "lsq+freezing", "of_a_plugin", "ste+kure", "ste (a=1, b=2)"])
def test_a_method_looks_the_same_whichever_others_are_there(method: str) -> None:
    alone = marks_of([method])[method]
    for others in (["float", "lsq", "gradient_l1"], ["ste", "oscillation", "cga", "none"], ["another_plugin"]):
        assert marks_of([*others, method])[method] == alone
        assert marks_of([method, *others])[method] == alone


def test_legends_of_a_report_have_one_order(group: Group) -> None:
    labels = {}
    for name in ("accuracy_over_bits", "oscillation_over_training", "threshold_distances", "pareto"):
        (legend,) = draw(name, group).figure.legends
        labels[name] = {text.get_text() for text in legend.get_texts()} & {one.name for one in group.series}
        order = [text for text in as_read(legend) if text in labels[name]]
        assert order == reading_order(group, labels[name]), name
    assert all(len(found) > 2 for found in labels.values())


def as_read(legend: Any) -> list[str]:
    """The labels line by line, as they are read: matplotlib has them column by column."""
    texts = [text.get_text() for text in legend.get_texts()]
    columns, rows = legend._ncols, -(-len(texts) // legend._ncols)
    full = len(texts) % columns or columns  # columns as long as the first; the others are shorter by one
    lengths = [rows if i < full else rows - 1 for i in range(columns)]
    starts = [sum(lengths[:i]) for i in range(columns)]
    return [texts[starts[i] + row] for row in range(rows) for i in range(columns) if row < lengths[i]]


def test_without_titles_panels_keep_theirs(group: Group) -> None:
    style.use_titles(False)
    try:
        for name in ("accuracy_over_bits", "layer_oscillation"):
            figure = draw(name, group).figure
            assert not any(legend.get_title().get_text() for legend in figure.legends)
            assert not figure.get_suptitle()
            assert figure.axes[0].get_title()
    finally:
        style.use_titles(True)
    assert draw("layer_oscillation", group).figure.get_suptitle().startswith(group.title)


def test_the_legend_of_strengths_shows_the_marks_in_the_panels(group: Group) -> None:
    figure = draw("strength_sensitivity", group).figure
    (legend,) = figure.legends
    assert as_read(legend) == ["at the target", "mean of the other bit-widths", "chosen trial"]
    mark = marks_of(["oscillation"])["oscillation"]
    shown = [line for line in legend.findobj(Line2D) if line.get_marker() == mark.marker]
    assert [line.get_markerfacecolor() for line in shown] == [mark.color, "none"]
    drawn = {(line.get_marker(), line.get_color()) for line in figure.axes[0].lines if line.get_marker() != "None"}
    assert drawn == {(mark.marker, mark.color)}


def test_ways_to_deploy_a_method_share_its_colour() -> None:
    marks = marks_of(["ste, rtn", "ste, gptq", "float, rtn", "float, gptq", "ste", "ste (a=1, b=2)"])
    assert marks["ste, rtn"] == marks["ste"]  # the first way as the method itself
    assert marks["float, rtn"] == marks_of(["float"])["float"]
    assert marks["ste, gptq"].marker != marks["ste"].marker
    assert min(marks["ste, gptq"].color) > min(marks["ste"].color)
    assert marks["ste (a=1, b=2)"].color not in {marks["ste"].color, marks["ste, gptq"].color}  # another cell


@pytest.mark.parametrize("name", ["accuracy_over_bits", "threshold_distances"])
def test_of_two_seeds_both_are_drawn(name: str, group: Group) -> None:
    pairs = tuple(replace(one, finals=one.finals[:2]) for one in group.series)
    drawing = draw(name, replace(group, series=pairs))
    (legend,) = drawing.figure.legends
    assert legend.get_title().get_text().endswith("mean and range over seeds (n = 2)")
    assert drawing.frame["low"].equals(drawing.frame["lowest"])
    assert drawing.frame["high"].equals(drawing.frame["highest"])
    assert (drawing.frame["high"] > drawing.frame["low"]).any()


def test_the_ends_of_two_seeds_are_their_values(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path, seeds=(0, 1))
    sweep.add("ste", 2)
    sweep.write()
    (group,) = make_groups(load_results(tmp_path, "quickstart"))
    drawing = draw("accuracy_over_bits", group)
    two = [100 * row["accuracy"] for run in sweep.records.values() for row in run["rows"] if row["bits"] == 2]
    assert set(drawing.frame.loc[0, ["low", "high"]]) <= set(two)
    assert (drawing.frame["half_width"] > drawing.frame["high"] - drawing.frame["low"]).all()


@pytest.mark.parametrize(("count", "bars"), [(8, True), (9, False)])
def test_a_crowded_panel_shows_means_alone(count: int, bars: bool, tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path)
    sweep.add("none", None)
    for i in range(count):
        sweep.add(f"method{i}", 2)
    sweep.write()
    (group,) = make_groups(load_results(tmp_path, "quickstart"))
    drawing = draw("accuracy_over_bits", group)
    (axes,) = drawing.figure.axes
    assert bool(axes.collections) == bars
    (legend,) = drawing.figure.legends
    assert ("95% t interval" in legend.get_title().get_text()) == bars
    assert any("too many to be read" in note for note in drawing.notes) != bars
    assert drawing.frame["half_width"].notna().all()


def test_a_panels_title_is_broken_where_words_and_settings_end() -> None:
    assert style.panel_title("pqn@3 (size=push)") == "pqn@3 (size=push)"
    assert style.panel_title("oscillation@2 (direction=scale_only)") == "oscillation@2\n(direction=\nscale_only)"
    assert style.panel_title("oscillation+dampening@2") == "oscillation+\ndampening@2"
