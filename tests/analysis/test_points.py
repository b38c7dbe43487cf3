"""Targets and points with activations: read, ordered, labelled, drawn, ranked, and left out of the claims."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from mixed_sweep import METHODS, POINTS, mixed
from synthetic_sweep import SweepWriter, add_exactly, make_row, near, only_group, paper

from analysis import claims, deployment, ranking, records, tables, watched
from analysis.disk_source import load_results
from analysis.figures import Drawing, find_figures, one_checkpoint
from analysis.frames import rows_frame, trials_frame
from analysis.grouping import make_groups
from analysis.profiles import collect
from analysis.series import Group, summarize
from harness.core.errors import UserError

NINE = (2, "w3a3", 3, "w4a4", "w4a8", 4, "w8a8", 8, "float")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed")
    mixed(path, trials=6)
    mixed(path, targets=(4, "w4a4", "w3a3"), points=NINE, trials=0, name="three")
    return path


@pytest.fixture(scope="module")
def group(root: Path) -> Group:
    return only_group(root, "mixed")


def draw(name: str, group: Group) -> Drawing:
    (module,) = [module for module in find_figures() if module.name == name]
    drawing: Drawing = module.draw(group)
    plt.close(drawing.figure)
    return drawing


def titles(drawing: Drawing) -> list[str]:
    return [title for axes in drawing.figure.axes if (title := axes.get_title())]


def problem(*rows: dict[str, Any], target: Any = None) -> str:
    """What is wrong with a final of these rows beside one of float weights."""
    config = {"seed": 0, "target_bit": target, "methods": [], "model": {"name": "a"}, "data": {"name": "b"}}
    config |= {"train": {}, "deploy": {}}
    provenance: dict[str, Any] = {}
    every = [make_row("float", "test", 90), *rows]
    record = {"run_id": "r", "phase": "final", "config": config, "provenance": provenance, "rows": every}
    return records.problem_of(record, "r", "final")


def test_a_row_with_activations_is_another_one() -> None:
    assert not problem(*(make_row(point, "test", 50) for point in (4, "w4a4", "w4a8", "w4kv4", "w4a8kv4")))
    rows = (make_row(4, "test", 50), make_row("w4a8", "test", 50), make_row("w4a8", "test", 60))
    assert problem(*rows) == "two rows for test rtn recalibrate w4a8"
    assert problem(*rows[:2], rows[0]) == "two rows for test rtn recalibrate 4"
    assert not problem(*rows[:2], rows[2] | {"deploy": "erq"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"activations": 1}, "activations 1 is not a whole number from 2 to 8"),
        ({"activations": "8"}, "activations '8' is not a whole number from 2 to 8"),
        ({"activations": None}, "activations None is not a whole number from 2 to 8"),
        ({"kv": True}, "kv True is not a whole number from 2 to 8"),
        ({"bits": "float", "activations": 8}, "activations 8 in a row whose bits are 'float'"),
        ({"bits": "w4a8"}, "bits 'w4a8' is neither a whole number from 2 to 8 nor 'float'"),
        ({"bits": 9}, "bits 9 is neither a whole number from 2 to 8 nor 'float'"),
    ],
)
def test_what_is_no_point_is_named(fields: dict[str, Any], said: str) -> None:
    assert problem(make_row(4, "test", 50) | fields) == said


@pytest.mark.parametrize("target", ["w4a1", "a4", 9])
def test_a_target_that_is_no_point_is_named(target: Any) -> None:
    assert problem(target=target).startswith(f"config.target_bit: {target!r}: no bit-width")


def test_order_and_labels(group: Group) -> None:
    assert group.points() == list(POINTS)
    assert group.targets() == ["w4a4", 4]
    labels = [one.label for one in group.series]
    assert labels == ["float", *(f"{method}@{target}" for target in (4, "w4a4") for method in METHODS)]
    assert {one.watched for one in group.series} == {(4,)}
    table = tables.make_table(group)
    assert tables.to_markdown(table).splitlines()[2] == "| | seeds | 2 bits | w4a4 | w4a8 | 4 bits | w8a8 | float |"
    assert [label for label, _, _ in table.rows] == [*(f"{m}@w4a4" for m in METHODS), *labels[1:4], "float"]
    marked = {label: [p for p, entry in zip(table.points, own) if entry.target] for label, _, own in table.rows}
    assert (marked["lsq@w4a4"], marked["lsq@4"], marked["float"]) == (["w4a4"], [4], [])


def test_each_point_has_its_own_rows(group: Group) -> None:
    (one,) = [one for one in group.series if one.label == "lsq@4"]
    rows = [row for final in one.finals for row in final.rows("test")]
    frame = summarize(group).set_index(["series", "bits"])
    for text, fields in (("4", (4, None)), ("w4a8", (4, 8)), ("w8a8", (8, 8)), ("float", ("float", None))):
        values = [row["accuracy"] for row in rows if (row["bits"], row.get("activations")) == fields]
        assert len(values) == 3
        assert frame.loc[("lsq@4", text), "mean"] == pytest.approx(100 * sum(values) / 3)


def test_rows_have_columns_for_what_is_rounded_beside_weights(root: Path, tmp_path: Path) -> None:
    frame = rows_frame(load_results(root, "mixed"))
    place = list(frame.columns).index("bits")
    assert list(frame.columns[place : place + 3]) == ["bits", "activations", "accuracy"]
    lines = frame.to_csv(index=False).splitlines()
    assert any(",w4a4,0,final,test,rtn,recalibrate,4,8,0." in line for line in lines)
    assert any(",4,0,final,test,rtn,recalibrate,4,,0." in line for line in lines)
    paper(tmp_path, seeds=(0, 1)).write()
    assert "activations" not in rows_frame(load_results(tmp_path, "quickstart"))


def test_trials_have_a_column_for_each_point(group: Group) -> None:
    frame = trials_frame(group)
    assert [name for name in frame if name.startswith("w") and name != "worst"] == ["w2", "w4a4", "w4a8", "w4", "w8a8"]
    for target, others in (("w4a4", ["w4a8", "w8a8"]), (4, ["w2"])):
        line = frame[(frame["target_bit"] == target) & (frame["method"] == "lsq")].iloc[5]
        assert line["at_target"] == line[deployment.key(target)]
        assert line["mean_of_others"] == pytest.approx(line[others].mean())
        assert line["worst"] == line[["w2", "w4a4", "w4a8", "w4", "w8a8"]].min()
    line = frame[frame["method"] == "float"].iloc[0]
    assert line["at_target"] == line["float"]
    assert line["mean_of_others"] == pytest.approx(line[["w2", "w4a4", "w4a8", "w4", "w8a8"]].mean())


def alike(*accuracies: float) -> dict[int, list[float]]:
    return {seed: list(accuracies) for seed in (0, 1)}


def small(root: Path) -> SweepWriter:
    """Targets 4 and w4a4 on 2 and 4 bits, w4a4, w8a8 and float; not yet written."""
    sweep = SweepWriter(root, seeds=(0, 1))
    sweep.points = (2, "w4a4", 4, "w8a8", "float")
    add_exactly(sweep, "none", None, alike(10, 30, 80, 90, 99), watch_bit=4)
    for method, plain, further in (
        ("ste", [60, 40, 92, 70, 1], [50, 88, 90, 94, 1]),
        ("lsq", [64, 44, 91, 72, 1], [54, 90, 89, 96, 1]),
    ):
        add_exactly(sweep, method, 4, alike(*plain), 4e-3)
        add_exactly(sweep, method, "w4a4", alike(*further), 8e-3)
    return sweep


def test_ranking(tmp_path: Path) -> None:
    small(tmp_path).write()
    made = ranking.make_ranking(only_group(tmp_path))
    assert made is not None
    assert made.targets == ("w4a4", 4)
    found = {one.method: one for one in made.standings}
    assert list(found) == ["lsq", "ste", "float"]
    assert found["lsq"].at == {"w4a4": pytest.approx(90), 4: pytest.approx(91)}
    assert found["lsq"].at_target.mean == pytest.approx(90.5)
    assert found["lsq"].others.mean == pytest.approx((96 + 64) / 2), "w8a8 for w4a4, 2 bits for 4 bits"
    assert found["float"].at_target.mean == pytest.approx((30 + 80) / 2)
    assert found["float"].others.mean == pytest.approx((90 + 10) / 2)
    assert found["lsq"].frequency == pytest.approx((4e-3 + 8e-3) / 2 * 1.01)
    assert list(made.frame().columns[4:6]) == ["at_w4a4", "at_w4"]
    text = ranking.to_markdown([made])
    assert "| rank | method | seeds | w4a4 | 4 bits | at target |" in text
    assert "but the target (for targets such as w4a4: over the other points with activations), then over" in text
    assert r"Rank & Method & Seeds & w4a4 & 4 bits & At target" in ranking.to_latex([made])


def test_the_ranking_of_weights_alone_says_what_it_said(tmp_path: Path) -> None:
    paper(tmp_path, seeds=(0, 1)).write()
    made = ranking.make_ranking(only_group(tmp_path))
    assert made is not None
    assert "mean over the integer bit-widths but the target, then over targets; both with" in ranking.legend([made])


def told(group: Group) -> list[str]:
    return [claims.to_text(found := claims.make_claims(group)), claims.to_markdown(found), claims.to_latex(found)]


def test_claims_are_of_weights_alone(tmp_path: Path) -> None:
    """With points and targets with activations every number stays, and one sentence says that they take no part."""
    paper(tmp_path / "before").write()
    sweep = paper(tmp_path / "after")
    for method in ("ste", "oscillation"):
        add_exactly(sweep, method, "w3a3", near(1, 2, 3, 4, 5))
    for record in sweep.records.values():
        record["rows"] += [make_row(point, split, 1) for split in ("val", "test") for point in ("w3a3", "w8a8")]
    sweep.write()
    sentence = " Points with activations, and networks trained for one, take no part."
    first, second = (told(only_group(tmp_path / name)) for name in ("before", "after"))
    assert all(sentence not in " ".join(text.split()) for text in first)
    assert all(sentence in " ".join(text.split()) for text in second)
    assert first[1] == second[1].replace(sentence, "")
    assert first[2] == second[2].replace(sentence, "")


def test_methods_at_targets_with_activations_alone_test_no_claim(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    for cell in [cell for cell in sweep.cells if cell.endswith("=4")]:
        del sweep.cells[cell]
    add_exactly(sweep, "oscillation", "w4a4", alike(50, 88, 90, 94, 1), 8e-3)
    sweep.write()
    found = claims.make_claims(only_group(tmp_path))
    reasons = {test.reason for claim in found for test in claim.tests if claim.key in "abd"}
    assert reasons == {"no ste and no oscillation for weights alone in this sweep"}


def test_a_panel_for_each_target(root: Path, group: Group) -> None:
    assert titles(draw("accuracy_over_bits", group)) == ["Target: w4a4 (shaded)", "Target: 4 bits (shaded)"]
    assert titles(draw("pareto", group)) == ["Target: w4a4", "Target: 4 bits"]
    strength = draw("strength_sensitivity", group)
    assert titles(strength)[:4] == ["lsq@w4a4", "lsq@4", "float", "oscillation@w4a4"]
    assert strength.notes == ("the other bit-widths of a target such as w4a4: the other points with activations",)
    heat = titles(draw("layer_oscillation", group))
    assert heat == ["float (at 4 bits)", "ste@4", "lsq@4", "oscillation@4", "ste@w4a4", "lsq@w4a4", "oscillation@w4a4"]
    three = only_group(root, "three")
    wanted = ["Target: w3a3 (shaded)", "Target: w4a4 (shaded)", "Target: 4 bits (shaded)"]
    assert titles(draw("accuracy_over_bits", three)) == wanted


@pytest.mark.parametrize("name", ["oscillation_over_training", "threshold_distances"])
def test_what_is_watched_at_one_bit_width_has_a_panel_for_each_target(name: str, root: Path) -> None:
    """Otherwise `lsq@4` and `lsq@w4a4` would be one line."""
    three = only_group(root, "three")
    drawing = draw(name, three)
    assert titles(drawing) == ["Watched at 3 bits (w3a3)", "Watched at 4 bits (w4a4)", "Watched at 4 bits"]
    for axes in drawing.figure.axes[:3]:
        assert len([line for line in axes.lines if len(line.get_xdata()) > 3]) == 4, "three methods and float"
    assert any("panels of their own" in note for note in drawing.notes)
    frame = drawing.frame
    assert [panel.title for panel in watched.panels(three, frame[frame["series"] != "ste@4"])] == titles(drawing)
    rest = frame[~frame["series"].str.endswith("@4")]
    assert [panel.title for panel in watched.panels(three, rest)] == titles(drawing)[:2], "none for float alone"
    rest = frame[~frame["series"].str.contains("4")]
    assert [panel.title for panel in watched.panels(three, rest)] == [titles(drawing)[0], "Watched at 4 bits"]


def ticks_touch(drawing: Drawing) -> bool:
    """Whether labels of the first panel's x axis do, once it is drawn."""
    drawing.figure.set_dpi(50)
    drawing.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in drawing.figure.axes[0].get_xticklabels()]
    return any(one.overlaps(other) for one, other in pairwise(boxes))


def test_points_with_activations_have_a_line_of_their_own(root: Path) -> None:
    drawing = draw("accuracy_over_bits", only_group(root, "three"))
    assert list(dict.fromkeys(drawing.frame["bits"])) == [str(point) for point in NINE]
    axes = drawing.figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(point) for point in NINE]
    assert not ticks_touch(drawing)
    lines = [container[0] for container in axes.containers]
    assert [len(line.get_xdata()) for line in lines] == [5, 4] * 4
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False, True] * 4
    assert "hollow\N{NO-BREAK SPACE}marks" in drawing.figure.get_supxlabel()
    assert any("hollow marks" in note for note in drawing.notes)


def test_tasks_are_points(root: Path) -> None:
    groups = [only_group(root, "mixed"), replace(only_group(root, "mixed"), model="other")]
    found = collect(groups)
    assert found.tasks[:5] == [f"mlp5 on digits, {text}" for text in ("2 bits", "w4a4", "w4a8", "4 bits", "w8a8")]
    assert len(found.scores) == 7
    (module,) = [module for module in find_figures() if module.name == "performance_profile"]
    drawing = module.draw(groups)
    plt.close(drawing.figure)
    assert set(drawing.frame["target_bit"].dropna()) == {4, "w4a4"}


def test_each_point_has_the_network_that_was_trained_for_it(tmp_path: Path) -> None:
    points = (3, "w4a4", "w4a8", 4, "w8a8", "float")
    groups = []
    for name in ("each", "single"):
        sweep = SweepWriter(tmp_path, name, seeds=(0, 1))
        sweep.points = points
        sweep.objective = ["target" if name == "each" else "worst"]
        cells = [("ste", 3), ("ste", 4), ("ste", "w4a4")] if name == "each" else [("oscillation", "w4a4")]
        for method, target in cells:
            add_exactly(sweep, method, target, near(50, 60, 70, 80, 90, 95, seeds=(0, 1)))
        sweep.write()
        groups += make_groups(load_results(tmp_path, name))
    drawing = one_checkpoint.draw(groups)
    assert not ticks_touch(drawing)
    plt.close(drawing.figure)
    networks = drawing.frame.set_index(["series", "bits"]).loc["ste, a network each", "network"].to_dict()
    every = "ste@3/ste@w4a4/ste@4"
    wanted = {"3": "ste@3", "w4a4": "ste@w4a4", "w4a8": "ste@w4a4", "4": "ste@4", "w8a8": "ste@w4a4", "worst": every}
    assert networks == wanted
    weights_only = replace(groups[0], series=tuple(one for one in groups[0].series if one.target != "w4a4"))
    drawing = one_checkpoint.draw([weights_only, groups[1]])
    plt.close(drawing.figure)
    networks = drawing.frame.set_index(["series", "bits"]).loc["ste, a network each", "network"].to_dict()
    assert (networks["w4a8"], networks["w8a8"]) == ("ste@4", "ste@4"), "by their weights"


def _change(cell: str) -> Callable[[SweepWriter], object]:
    def change(sweep: SweepWriter) -> None:
        for seed in sweep.seeds:
            sweep.run_of(cell, seed)["config"]["activations"]["range"] = "max"

    return change


def test_activations_that_were_rounded_otherwise_are_not_compared(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    for record in sweep.records.values():
        record["config"]["activations"] = {"granularity": "tensor", "range": "mse"}
    sweep.write()
    assert len(only_group(tmp_path).series) == 5
    _change("lsq-target_bit=4")(sweep)
    sweep.write()
    with pytest.raises(UserError, match=r"different protocols .*activations\.range is 'mse' in run"):
        only_group(tmp_path)
    for record in sweep.records.values():
        record["rows"] = [row for row in record["rows"] if "activations" not in row]
    sweep.write()
    assert len(only_group(tmp_path).series) == 5, "it decided nothing"


def test_columns_of_targets() -> None:
    assert deployment.tidy(pd.Series([2, None, 4])).dtype == "Int64"
    assert deployment.tidy(pd.Series([2, None, "w4a4"])).tolist()[::2] == [2, "w4a4"]
    assert deployment.in_order(["float", 8, "w4kv4", 4, "w4a8", 2, "w2a8", 4]) == [
        "w2a8", 2, "w4a8", "w4kv4", 4, 8, "float",
    ]  # fmt: skip
