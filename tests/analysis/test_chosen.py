"""Which chosen settings lie at an end of the range that they were searched in."""

import json
from pathlib import Path

import pandas as pd
import pytest
from analysis_cost import Shape, write_sweep
from blank_pictures import blank_pictures

from analysis import chosen, make_figures
from analysis.disk_source import load_results
from harness.sweep.search_space import Range


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (Range(low=0.1, high=10, log=True), 1.0, 0.5),
        (Range(low=0.1, high=10, log=True), 0.1, 0.0),
        (Range(low=2, high=6), 3.0, 0.25),
        (Range(low=0, high=10, kind="int"), 10, 1.0),
    ],
)
def test_a_place_in_a_range(space: Range, value: float, expected: float) -> None:
    assert chosen.position(space, value) == pytest.approx(expected)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Trainings whose chosen settings lie at the low end, at the high end, and between."""
    write_sweep(tmp_path, Shape(trials=1, seeds=3, epochs=2, layers=2))
    path = tmp_path / "large/cells.json"
    content = json.loads(path.read_text())
    for cell, rate in zip(content["cells"][1:], (1.5e-4, 8e-3, 1e-3)):  # of 1e-4 to 1e-2
        cell["chosen"]["params"] = {"train.learning_rate": rate, "train.batch_size": 64}
    for cell in [content["cells"][0], *content["cells"][4:]]:
        cell["chosen"] = None
    path.write_text(json.dumps(content))
    return tmp_path


def test_what_lies_at_an_end(root: Path) -> None:
    found = chosen.frame(load_results(root, "large"))
    assert list(found["end"]) == ["low", "high", ""]  # a setting that was not searched has no range
    assert [chosen.told(one) for one in found.itertuples()] == [
        " (low end of 0.0001 to 0.01)", " (high end of 0.0001 to 0.01)", "",
    ]  # fmt: skip
    assert chosen.note(found) == [
        "2 of 3 chosen settings lie in the outer tenth of the range that was searched, and a wider one may do better: "
        "chosen_settings.csv"
    ]
    assert chosen.note(found[found["end"] == ""]) == []


def test_it_is_printed_reported_and_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blank_pictures(monkeypatch)
    make_figures.main(["--root", str(root)])
    assert "note: 2 of 3 chosen settings lie in the outer tenth" in capsys.readouterr().out
    figures = root / "large/figures"
    page = (figures / "report.html").read_text()
    assert "train.learning_rate = 0.00015 (low end of 0.0001 to 0.01), train.batch_size = 64" in page
    assert "train.learning_rate = 0.001, train.batch_size" in page
    assert list(pd.read_csv(figures / "chosen_settings.csv").columns) == list(chosen.COLUMNS)


def test_a_sweep_whose_ranges_are_not_known(root: Path) -> None:
    (root / "large/sweep.json").unlink()
    assert chosen.frame(load_results(root, "large")).empty
