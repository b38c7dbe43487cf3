"""What figures and tables take from the task: labels, direction, the row of its baseline."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from analysis_cost import Shape, write_sweep
from blank_pictures import blank_pictures
from matplotlib.text import Text
from retold_sweep import ERROR, MAE, retell, use_error
from retold_sweep import PSNR as PSNR_TOLD
from synthetic_sweep import SweepWriter, paper, quickstart, refuted

from analysis import claims, comparisons, make_figures, measure, profiles, summary
from analysis.claim import claims_about
from analysis.disk_source import load_results
from analysis.figures import accuracy_over_bits, one_checkpoint
from analysis.figures.pareto import undominated
from analysis.grouping import make_groups
from analysis.intervals import Interval, separate_best
from analysis.ranking import legend, make_ranking
from analysis.ranking import to_text as ranking_text
from analysis.records import _rows_problem
from analysis.score_axis import Distance
from analysis.series import Group, reading_order
from analysis.tables import make_table, to_latex, to_markdown, to_text
from harness.core.bits import FLOAT
from harness.tasks.base import find

PSNR = find("super_resolution").metric
CONFIG = {"data": {"name": "sample_images"}}


def row(**changes: Any) -> dict[str, Any]:
    found = {"phase": "final", "split": "test", "deploy": "rtn", "scale": "recalibrate", "bits": 3, "metric": "psnr"}
    return {**found, "score": 30.0, "loss": 0.1, "n": 1, "ssim": 0.5, **changes}


def test_labels_are_those_of_the_task() -> None:
    assert measure.label(measure.metric_of(CONFIG)) == "Test PSNR (dB)"
    assert measure.label(measure.metric_of({"data": {"name": "digits"}}), "validation") == "validation accuracy (%)"
    assert measure.label(measure.metric_of({"data": {"name": "gone"}})) == "Test accuracy (%)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"score": -1.0}, "PSNR -1.0 is not in [0, 100]"),
        ({"metric": "mae"}, "metric 'mae' is not 'psnr', that of its data"),
    ],
)
def test_rows_are_checked_against_the_metric(changes: dict[str, Any], said: str) -> None:
    assert _rows_problem([row(**changes)], "test", PSNR) == said
    assert _rows_problem([row()], "test", find("classification").metric).startswith("a row lacks some of")


def test_the_baseline_has_scores_of_its_own() -> None:
    rows = [row(), row(deploy="bicubic", bits="float", score=28.0)]
    assert measure.baseline_scores({"config": CONFIG, "rows": rows}) == ("bicubic", {"float": 28.0})
    assert measure.baseline_scores({"config": CONFIG, "rows": rows[:1]}) is None


def test_where_lower_is_better_the_lowest_is_best() -> None:
    means = [Interval(5.0, 0.5, 3), Interval(3.0, 0.5, 3), Interval(7.0, 0.5, 3)]
    assert (separate_best(means, higher_is_better=False), separate_best(means)) == (1, 2)
    assert separate_best([*means, Interval(3.2, 0.5, 3)], higher_is_better=False) is None


@pytest.fixture
def error(monkeypatch: pytest.MonkeyPatch) -> None:
    use_error(monkeypatch)


def group_of(folder: Path) -> Group:
    (group,) = make_groups(load_results(folder.parent, folder.name))
    return group


def both(tmp_path: Path, sweep: Callable[[Path], SweepWriter]) -> tuple[Group, Group]:
    """The same sweep measured by accuracy, and by an error of which 1 is a point."""
    one, other = sweep(tmp_path / "one").write(), sweep(tmp_path / "other").write()
    return group_of(one.folder), group_of(retell(other.folder, ERROR))


@pytest.mark.usefixtures("error")
@pytest.mark.parametrize("sweep", [paper, refuted])
def test_claims_about_an_error_are_those_about_accuracy(tmp_path: Path, sweep: Any) -> None:
    accuracy, error = both(tmp_path, sweep)
    columns = ["claim", "target_bit", "method", "n", "test", "verdict"]
    numbers = ["effect", "low", "high", "margin", "p", "p_holm"]
    one, other = (claims.to_frame(claims.make_claims(group)) for group in (accuracy, error))
    assert one[columns].equals(other[columns])
    assert np.allclose(one[numbers], other[numbers], rtol=1e-6, atol=1e-9, equal_nan=True)


def test_claims_are_in_the_words_of_the_task() -> None:
    psnr, error = claims_about(PSNR), claims_about(MAE)
    assert psnr[1].text == "the regularizer is within 0.1 dB of QAT (or above it) at targets of 3 bits and more"
    assert (psnr[1].margin, psnr[1].unit, psnr[0].unit) == (-0.1, "dB", "1/step")
    assert psnr[3].definition.endswith("float PSNR of the same run, in dB; supported above -0.1.")
    assert error[1].statement == "oscillation@{bits} is less than 1 above ste@{bits} at {bits} bits"
    assert error[1].definition == (
        "Effect: mean absolute error of QAT less that of the regularizer at their target; supported above -1."
    )
    assert "highest mean absolute error at the bit-widths above the target of the same run" in error[3].definition
    assert not [claim for claim in (*psnr, *error) if "accuracy" in f"{claim.text}{claim.statement}{claim.effect}"]


@pytest.mark.usefixtures("error")
def test_order_and_marks_go_by_what_is_better(tmp_path: Path) -> None:
    accuracy, error = both(tmp_path, paper)
    names = {one.name for one in accuracy.series}
    assert reading_order(accuracy, names) == reading_order(error, names)
    one, other = (make_ranking(group) for group in (accuracy, error))
    assert one
    assert other
    assert [(each.method, each.rank, each.best) for each in one.standings] == [
        (each.method, each.rank, each.best) for each in other.standings
    ]
    marks = [[[entry.best for entry in row[2]] for row in make_table(group).rows] for group in (accuracy, error)]
    assert marks[0] == marks[1]
    assert any(any(row) for row in marks[0])
    assert "test mean absolute error" in ranking_text(other)


def test_decimals_and_margins_are_the_tasks() -> None:
    accuracy = find("classification").metric
    assert [measure.decimals(metric) for metric in (accuracy, PSNR, PSNR.beside[0], MAE)] == [1, 2, 4, 1]
    assert [measure.close(metric) for metric in (accuracy, PSNR, MAE)] == ["1 point", "0.1 dB", "1"]
    assert [measure.limits(metric) for metric in (accuracy, PSNR, MAE)] == ["0 or 100 %", "0 or 100 dB", "0"]


def test_what_beats_what_depends_on_the_direction() -> None:
    points = pd.DataFrame({"at_target": [1.0, 2.0, 3.0, 2.0], "worst": [3.0, 2.0, 1.0, 1.0]})
    assert undominated(points).tolist() == [True, True, True, False]
    assert undominated(points, higher_is_better=False).tolist() == [True, False, False, True]


@pytest.mark.usefixtures("error")
def test_one_network_for_all_loses_as_much_in_error_as_in_accuracy(tmp_path: Path) -> None:
    found = []
    for task in (None, ERROR):
        for name, methods in (("each", {"ste": (2, 3)}), ("single", {"oscillation": (2,)})):
            sweep = SweepWriter(tmp_path / str(bool(task)), name)
            sweep.objective = ["worst"] if name == "single" else ["target"]
            for method, targets in methods.items():
                for target in targets:
                    sweep.add(method, target)
            sweep.write()
            if task:
                retell(sweep.folder, task)
        groups = [group_of(tmp_path / str(bool(task)) / name) for name in ("each", "single")]
        drawing = one_checkpoint.draw(groups)
        plt.close(drawing.figure)
        assert drawing.figure.axes[0].get_ylabel() == measure.axis_label(groups[0].metric)
        found.append(drawing.frame[["cost", "cost_low", "cost_high"]])
    assert np.allclose(*found, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.usefixtures("error")
def test_profiles_are_relative_to_float_in_either_direction_and_of_one_metric(tmp_path: Path) -> None:
    error = [group_of(retell(quickstart(tmp_path / name).write().folder, ERROR)) for name in ("a", "b")]
    accuracy = group_of(quickstart(tmp_path / "c").write().folder)
    found = profiles.collect([*error, accuracy])
    assert found.groups == tuple(error)
    assert "left out, since most are about mean absolute error: mlp5 on digits (accuracy)" in found.notes[0]
    scores = found.scores["ste@2"]["mlp5 on diabetes (quickstart), 2 bits"]
    (ste,) = [one for one in error[0].trained if one.training_label == "ste@2"]
    (none,) = [one for one in error[0].trained if one.method == "float"][:1]
    assert scores == pytest.approx(np.mean(none.scores("float")) / np.array(ste.scores(2)))


def test_a_distance_axis_is_up_to_the_best_and_back() -> None:
    for higher, better, worse in ((True, 35.8, 20.0), (False, 1.9, 4.0)):
        scale = Distance(better, 0.1, higher)
        values = np.linspace(worse, better, 9)
        places = scale.position(values)
        assert np.allclose(scale.score(places), values)
        assert (np.diff(places) > 0).all() == higher
        assert abs(places[-1] - places[-2]) > 2 * abs(places[1] - places[0])


def test_psnr_is_drawn_with_its_unit_and_the_baseline(tmp_path: Path) -> None:
    group = group_of(retell(paper(tmp_path).write().folder, PSNR_TOLD))
    drawing = accuracy_over_bits.draw(group)
    plt.close(drawing.figure)
    texts = [text.get_text() for text in drawing.figure.findobj(Text)]
    assert [text for text in texts if text.startswith("Test PSNR (dB)")]
    assert "bicubic" in texts
    assert not [text for text in texts if "accuracy" in text or "100" in text]
    assert drawing.frame.iloc[-1][["series", "bits", "mean"]].tolist() == ["bicubic", "float", 33.5]
    table = make_table(group)
    assert table.rows[-1][0] == "bicubic"
    assert [entry.text() for entry in table.rows[-1][2]] == ["—"] * 4 + ["33.50"]
    assert table.heading == "PSNR at every deployment bit-width"


@pytest.mark.slow
@pytest.mark.usefixtures("error")
@pytest.mark.parametrize("task", [PSNR_TOLD, ERROR], ids=lambda task: task[1])
def test_a_report_of_another_task_does_not_speak_of_accuracy(
    tmp_path: Path, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task is PSNR_TOLD:  # figures of super-resolution are among the committed results
        blank_pictures(monkeypatch)
    write_sweep(tmp_path, Shape(trials=10, seeds=3, epochs=2, layers=3))
    retell(tmp_path / "large", task)
    assert make_figures.main(["--root", str(tmp_path)]) == 0
    page = re.sub(r'src="data:[^"]*"', "", (tmp_path / "large/figures/report.html").read_text())
    assert "ccuracy" not in re.sub("accuracy_over_bits", "", page)
    assert not re.search(r"\bpoints|\(%\)|100 %", page)
    drawn = {path.stem for path in (tmp_path / "large/figures").glob("*.png")}
    assert {"accuracy_over_bits", "pareto", "strength_sensitivity", "parameter_importance"} <= drawn


def test_networks_that_are_no_better_than_what_needs_no_training_are_noted(tmp_path: Path) -> None:
    folder = retell(paper(tmp_path).write().folder, PSNR_TOLD)
    floats = [one.scores(FLOAT) for one in group_of(folder).series]
    best, surest = max(map(fmean, floats)), max(map(min, floats))
    for score, noted in ((surest - 0.01, False), (surest + 0.01, True)):
        for record in folder.rglob("record.json"):
            found = json.loads(record.read_text())
            for own in (own for own in found["rows"] if own["deploy"] == "bicubic"):
                own["score"] = score
            record.write_text(json.dumps(found))
        notes = [note for note in group_of(folder).notes if "with every seed than bicubic, which needs no" in note]
        assert len(notes) == noted
    assert f"({best:.2f} in the mean against {surest + 0.01:.2f} dB)" in notes[0]
    group = group_of(folder)
    found, ranking = comparisons.of_group(group), make_ranking(group)
    assert found
    assert ranking
    said = f"{notes[0][0].upper()}{notes[0][1:]}."
    assert summary.sentences(found)[0] == said
    assert said in legend([ranking])


@pytest.mark.usefixtures("error")
def test_that_lower_is_better_is_said(tmp_path: Path) -> None:
    accuracy, error = both(tmp_path, paper)
    for group, told in ((accuracy, False), (error, True)):
        table, ranking, found = make_table(group), make_ranking(group), comparisons.of_group(group)
        assert ranking
        assert found
        drawing = accuracy_over_bits.draw(group)
        plt.close(drawing.figure)
        label = drawing.figure.axes[0].get_ylabel()
        texts = [to_markdown(table), to_text(table), to_latex(table), ranking_text(ranking), legend([ranking])]
        assert all(("lower is better" in text) == told for text in texts)
        assert ("below 0 where the method is better" in found.legend) == told
        assert ("(lower is better" in label) == told
