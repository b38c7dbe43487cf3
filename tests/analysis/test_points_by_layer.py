"""Points by layer in the analysis: read, ordered, drawn and tabled by their name; no part of claims and other means."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from mixed_sweep import mixed
from synthetic_sweep import make_row, only_group

from analysis import claims, deployment, records
from analysis.figures import accuracy_over_bits
from analysis.frames import objective_value, trials_frame
from analysis.grouping import make_groups
from analysis.load import load_results
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
    assert group.series[0].accuracies("head8") == [0.55] * 3
    assert {"w2", "w4", "head8"} <= set(trials_frame(group).columns)
    assert {objective_value(trial, "val/acc_head8") for trial in group.trials} == {0.55}


def test_figures_have_a_place_for_them(group: Group) -> None:
    drawing = accuracy_over_bits.draw(group)
    labels = [label.get_text() for axes in drawing.figure.axes for label in axes.get_xticklabels()]
    plt.close(drawing.figure)
    assert [label for label in dict.fromkeys(labels) if label] == ["2", "4", "head8", "float"]


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
