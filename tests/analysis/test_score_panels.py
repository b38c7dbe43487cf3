"""The figure of scores over bit-widths where trainings were deployed in several ways: which panels and lines it has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from synthetic_sweep import SweepWriter, only_group

from analysis import score_panels
from analysis.figures import Drawing, accuracy_over_bits
from analysis.series import Group, summarize


def sweep(root: Path, methods: int, ways: tuple[str, ...], targets: tuple[Any, ...] = (3,)) -> Group:
    """Float training and `methods` others at each target, the first the best; each further way a point lower."""
    written = SweepWriter(root)
    written.add("none", None, [(50, 1), (60, 1), (70, 1), (80, 1), (90, 1)])
    for i in range(methods):
        for target in targets:
            written.add(f"method{i}", target, [(80 - 5 * i, 1)] * 5)
    for record in written.records.values():
        own = record["rows"]
        for below, way in enumerate(ways, 1):
            record["rows"] = record["rows"] + [
                {**row, "deploy": way, "accuracy": row["accuracy"] - below / 100} for row in own if row["bits"] != 8
            ]
    written.write()
    return only_group(root)


def drawn(group: Group) -> Drawing:
    drawing = accuracy_over_bits.draw(group)
    drawing.figure.canvas.draw()
    plt.close(drawing.figure)
    return drawing


def titles(drawing: Drawing) -> list[str]:
    return [axes.get_title() for axes in drawing.figure.axes if axes.get_visible()]


def entries(drawing: Drawing) -> set[str]:
    (legend,) = drawing.figure.legends
    return {text.get_text() for text in legend.get_texts()}


def test_ways_that_crowd_a_panel_are_lines_in_a_panel_for_each_training(tmp_path: Path) -> None:
    drawing = drawn(group := sweep(tmp_path, 4, ("gptq",)))
    assert titles(drawing) == ["method0@3", "method1@3", "method2@3", "method3@3", "float"]
    assert entries(drawing) == {"rtn", "gptq"}
    first, *_, last = panels = drawing.figure.axes[:5]
    looks = [[(line.get_color(), line.get_marker()) for line in _means(axes)] for axes in panels]
    assert looks == [looks[0]] * 5
    assert len({color for color, _ in looks[0]}) == 2
    assert all(axes.collections for axes in panels), "the intervals are back"
    assert len({axes.get_ylim() for axes in panels}) == 1
    (shaded,) = first.patches
    assert isinstance(shaded, Rectangle)
    assert shaded.get_x() == pytest.approx(0.55), "at 3 bits"
    assert not last.patches
    means = summarize(group).set_index(["series", "bits"])["mean"]
    for axes, training in zip(panels, (*(f"method{i}@3" for i in range(4)), "float")):
        for line, way in zip(_means(axes), ("rtn", "gptq")):
            wanted = [means[f"{training}, {way}", bits] for bits in ("2", "3", "4", "8", "float")]
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), wanted)


def _means(axes: Any) -> list[Any]:
    """The lines through means, without the ends of intervals."""
    return [line for line in axes.lines if line.get_linestyle() != "None" and line.get_marker() not in "|_"]


def test_the_table_and_the_notes_are_those_of_all_lines(tmp_path: Path) -> None:
    group = sweep(tmp_path, 4, ("gptq",))
    drawing, frame = drawn(group), summarize(group)
    assert drawing.frame.equals(frame[frame["n"] > 0].reset_index(drop=True))
    assert not any("too many to be read" in note for note in drawing.notes)
    (legend,) = drawing.figure.legends
    title = legend.get_title().get_text()
    assert title == "mlp5 on digits: by training, target shaded\nmean and 95% t interval over seeds (n = 3)"


def test_trainings_are_in_order_of_their_targets_and_float_is_drawn_once(tmp_path: Path) -> None:
    drawing = drawn(sweep(tmp_path, 4, ("gptq",), targets=(3, 2)))
    own = [f"method{i}@{target}" for target in (2, 3) for i in range(4)]
    assert titles(drawing) == [*own, "float"]


def test_few_lines_share_a_panel(tmp_path: Path) -> None:
    drawing = drawn(sweep(tmp_path, 3, ("gptq",), targets=(2, 3)))  # 8 lines
    assert titles(drawing) == ["Target: 2 bits (shaded)", "Target: 3 bits (shaded)"]
    assert {"method0, rtn", "method0, gptq", "float, rtn"} < entries(drawing)


def test_many_methods_of_one_way_share_a_panel(tmp_path: Path) -> None:
    assert titles(drawn(sweep(tmp_path, 12, ()))) == ["Target: 3 bits (shaded)"]


def test_more_trainings_than_a_page_has_room_for_share_a_panel(tmp_path: Path) -> None:
    most = score_panels.MOST_PANELS
    assert len(titles(drawn(sweep(tmp_path / "most", most - 1, ("gptq",))))) == most
    assert titles(drawn(sweep(tmp_path / "more", most, ("gptq",)))) == ["Target: 3 bits (shaded)"]


def test_a_line_across_all_panels_counts(tmp_path: Path) -> None:
    group = sweep(tmp_path, 2, ("gptq", "erq"))  # 9 lines
    assert [score_panels.arrange(group, summarize(group), further).each for further in (0, 1)] == [False, True]


def test_a_training_deployed_in_one_way_has_its_name_in_the_legend(tmp_path: Path) -> None:
    written = SweepWriter(tmp_path)
    for i in range(10):
        written.add(f"method{i}", 3)
    cell = next(iter(written.cells))
    for seed in written.seeds:
        record = written.run_of(cell, seed)
        record["rows"] += [{**row, "deploy": "gptq"} for row in record["rows"]]
    written.write()
    drawing = drawn(only_group(tmp_path))
    assert len(titles(drawing)) == 10
    assert entries(drawing) == {"rtn", "gptq"}


def test_many_ways_have_wide_panels_that_are_labelled_at_the_left(tmp_path: Path) -> None:
    ways = tuple(f"way{i}" for i in range(8))
    figure = drawn(sweep(tmp_path, 2, ways)).figure
    axes = figure.axes[:3]
    assert [bool(each.get_ylabel()) for each in axes] == [True, False, True]
    assert len({to_rgba(line.get_color()) for line in _means(axes[0])}) == 9
    assert figure.get_figwidth() == 6.5


def test_ways_too_many_for_intervals_show_means_alone(tmp_path: Path) -> None:
    drawing = drawn(sweep(tmp_path, 1, tuple(f"way{i}" for i in range(9))))
    assert titles(drawing) == ["method0@3", "float"]
    assert not any(axes.collections for axes in drawing.figure.axes)
    assert any("too many to be read" in note for note in drawing.notes)


def test_series_that_are_emphasized_are_stronger_than_all_others(tmp_path: Path) -> None:
    group = sweep(tmp_path, 4, ())
    widths = {line.get_linewidth() for axes in drawn(group).figure.axes for line in _means(axes)}
    assert len(widths) == 1
    (axes,) = drawn(replace(group, emphasized=frozenset({"method2"}))).figure.axes
    strong, *others = sorted(_means(axes), key=lambda line: -line.get_linewidth())
    frame = summarize(group)
    assert list(strong.get_ydata()) == frame[frame["method"] == "method2"]["mean"].tolist()
    assert (strong.get_alpha(), {line.get_alpha() for line in others}) == (None, {0.45})
    assert min(strong.get_linewidth() / line.get_linewidth() for line in others) > 1.5
    assert min(strong.get_zorder() - line.get_zorder() for line in others) > 0
