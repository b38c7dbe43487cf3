"""Points by layer in the analysis: read, ordered, drawn and tabled by their name; no part of claims and other means."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from mixed_sweep import mixed
from synthetic_sweep import make_row, only_group

from analysis import claims, deployment, records, tables
from analysis.disk_source import load_results
from analysis.figures import accuracy_over_bits, one_checkpoint
from analysis.frames import objective_value, trials_frame
from analysis.grouping import make_groups
from analysis.series import Group
from harness.core.errors import UserError

LAYERS = {"*": 2, "head": 8}


def by_layer(split: str, layers: Any = LAYERS, accuracy: float = 55.0) -> dict[str, Any]:
    return {**make_row(2, split, accuracy), "bits": "head8", "layers": layers}


def write(root: Path, layers: Any = LAYERS) -> None:
    """A sweep whose every record has rows at head8; layers: of the last final."""
    mixed(root, targets=(2, 4), points=(2, 4, "float"), trials=2)
    paths = sorted(root.glob("mixed/runs/*/record.json"))
    for path in paths:
        record = json.loads(path.read_text())
        split = "test" if record["phase"] == "final" else "val"
        record["rows"].insert(1, by_layer(split, layers if path == paths[-1] else LAYERS))
        path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    root = tmp_path_factory.mktemp("by_layer")
    write(root)
    return only_group(root, "mixed")


def test_they_are_read_and_come_before_float(group: Group) -> None:
    assert group.points() == [2, 4, "head8", "float"]
    assert group.series[0].scores("head8") == [0.55] * 3
    assert {"w2", "w4", "layers.head8"} <= set(trials_frame(group).columns)
    assert {objective_value(trial, "val/acc_head8") for trial in group.trials} == {0.55}


def test_figures_have_a_place_for_them(group: Group) -> None:
    drawing = accuracy_over_bits.draw(group)
    labels = [label.get_text() for axes in drawing.figure.axes for label in axes.get_xticklabels()]
    plt.close(drawing.figure)
    assert [label for label in dict.fromkeys(labels) if label] == ["2", "4", "head8", "float"]
    for container in drawing.figure.axes[0].containers:
        joined = len(container[0].get_xdata()) > 1
        assert joined == (container[0].get_linestyle() != "None"), "no line leads to them"
    told = drawing.figure.get_supxlabel().replace("\N{NO-BREAK SPACE}", " ")
    assert told == "Deployment point (a number: weights alone; a name: by layer, not joined)"


def test_a_long_name_takes_no_room_from_the_panels(group: Group) -> None:
    def drawn(name: str) -> tuple[float, str]:
        for final in group.finals:
            for row in final.record["rows"]:
                row["bits"] = name if "layers" in row else row["bits"]
        drawing = accuracy_over_bits.draw(group)
        drawing.figure.set_dpi(50)
        drawing.figure.canvas.draw()
        plt.close(drawing.figure)
        axes = drawing.figure.axes[0]
        return axes.get_window_extent().height, [label.get_text() for label in axes.get_xticklabels()][2]

    long, short = drawn("w4-head_w8-layer1_float"), drawn("head8")
    assert (long[1], short[1]) == ("w4-head_w8-la…", "head8")
    assert long[0] > 0.85 * short[0]


def test_they_are_text_in_tables(group: Group) -> None:
    table = replace(tables.make_table(group), points=(2, "_head_8", "float"))
    assert r"2 bits & \_head\_8 & float" in tables.to_latex(table)
    assert r"| 2 bits | \_head_8 | float |" in tables.to_markdown(table)


def test_a_name_is_no_other_column_of_the_trials() -> None:
    assert [deployment.key(point) for point in (2, "w4a4", "trial", "float")] == ["w2", "w4a4", "layers.trial", "float"]


def test_one_network_for_every_bit_width_is_compared_without_them(tmp_path: Path) -> None:
    groups = []
    for name, objective in (("each", "target"), ("single", "worst")):
        sweep = mixed(tmp_path, targets=(2, 4), points=(2, 4, "float"), trials=0, seeds=(0, 1), name=name)
        for record in sweep.records.values():
            record["rows"].append(by_layer("test"))
        sweep.objective = [objective]
        groups += make_groups(load_results(tmp_path, sweep.write().folder.name))
    drawing = one_checkpoint.draw(groups)
    plt.close(drawing.figure)
    assert list(dict.fromkeys(drawing.frame["bits"])) == ["2", "4", "worst"]
    assert drawing.figure.get_supxlabel() == "Deployment bit-width"


def test_they_take_no_part_in_claims_and_means_over_other_points(group: Group) -> None:
    found = claims.make_claims(group)
    assert {claim.left_out for claim in found} == {" Points by layer take no part."}
    assert deployment.others(group.points(), 2) == deployment.others(group.points(), None)[1:] == [4]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (by_layer("test"), ""),
        (by_layer("test", {"head": 9}), "bits 'head8', layers: layers: head: 9: no bit-width"),
        ({**by_layer("test"), "bits": "w4"}, "'w4' means something else already"),
        ({**make_row(2, "test", 50), "bits": "head8"}, "bits 'head8' is neither"),
    ],
)
def test_damaged_rows_are_told(row: dict[str, Any], said: str) -> None:
    config = {"seed": 0, "methods": [], "model": {"name": "a"}, "data": {"name": "b"}, "train": {}, "deploy": {}}
    rows = [make_row("float", "test", 90), row]
    record = {"run_id": "r", "phase": "final", "config": config, "provenance": {}, "rows": rows}
    problem = records.problem_of(record, "r", "final")
    assert said in problem
    assert bool(problem) == bool(said)


def test_one_name_with_other_layers_cannot_be_compared(tmp_path: Path) -> None:
    write(tmp_path, {"*": 2, "head": 4})
    with pytest.raises(UserError, match=r"point head8 is \{'\*': 2, 'head': 8\} in run .* but \{'\*': 2, 'head': 4\}"):
        make_groups(load_results(tmp_path, "mixed"))
