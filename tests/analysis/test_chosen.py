"""Which chosen settings lie at an end of the range that they were searched in, and which cells were hardly tuned."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from analysis_cost import Shape, write_sweep
from blank_pictures import blank_pictures

from analysis import chosen, claims, comparisons, make_figures, summary
from analysis.disk_source import load_results
from analysis.grouping import make_groups
from harness.data import find
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
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trainings whose chosen settings lie at the low end, at the high end, and between."""
    monkeypatch.setattr(chosen, "PER_SETTING", 0)  # it has a test of its own
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


def test_a_sweep_file_that_this_version_cannot_read(root: Path) -> None:
    path = root / "large/sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_another_version": 1}))
    sweep = load_results(root, "large")
    assert chosen.frame(sweep).empty
    assert make_groups(sweep)


@pytest.fixture
def hardly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ste@2 had one of its four trials finish, and oscillation@3 was no better than chance on validation."""
    monkeypatch.setattr(chosen, "PER_SETTING", 0)  # it has a test of its own
    write_sweep(tmp_path, Shape(trials=4, seeds=3, epochs=2, layers=2))
    path = tmp_path / "large/cells.json"
    content = json.loads(path.read_text())
    runs = tmp_path / "large/runs"
    for cell in content["cells"]:
        cell["trials"] = 4
        cell["chosen"]["params"] = {}  # no range has ends
    chosen_runs = {cell["id"]: cell["chosen"]["run_id"] for cell in content["cells"]}
    path.write_text(json.dumps(content))
    for folder in runs.iterdir():
        (entry,) = json.loads((folder / "trials.json").read_text())
        if (entry["cell"], entry["phase"]) == ("ste,target_bit=2", "tune") and entry["trial"]:
            (folder / "record.json").unlink()
            (folder / "status.json").write_text('{"state": "pruned"}')
    at_chance = runs / chosen_runs["oscillation,target_bit=3"] / "record.json"
    record = json.loads(at_chance.read_text())
    record["rows"][1]["accuracy"] = 0.149  # of ten classes; at 3 bits
    at_chance.write_text(json.dumps(record))
    return tmp_path


def test_cells_that_were_hardly_tuned_are_named(hardly: Path) -> None:
    found = chosen.frame(load_results(hardly, "large"))
    told = {"ste,target_bit=2": "1 of 4 trials finished", "oscillation,target_bit=3": "best trial at chance"}
    assert dict(zip(found["cell"], found["tuning"], strict=True)) == told
    assert set(found["setting"]) == {""}
    assert chosen.note(found) == [
        "hardly tuned, so that verdicts on them say little: ste,target_bit=2 (1 of 4 trials finished), "
        "oscillation,target_bit=3 (best trial at chance)"
    ]


def test_half_of_the_trials_are_enough_and_a_lost_record_tells_nothing(hardly: Path) -> None:
    sweep = load_results(hardly, "large")
    cell = next(cell for cell in sweep.cells if cell.id == "lsq,target_bit=2")
    trials = chosen.trials_by_cell(sweep)[cell.id]
    assert chosen.weak(cell, trials[:2], {}) == []
    assert chosen.weak(cell, trials[:1], {}) == ["1 of 4 trials finished"]
    assert chosen.weak(cell, trials[1:2], {}) == []  # not the chosen one
    assert chosen.weak(replace(cell, planned_trials=None), trials[:1], {}) == []


def test_few_trials_for_their_settings_are_named(hardly: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sweep = load_results(hardly, "large")
    cell = next(cell for cell in sweep.cells if cell.id == "lsq,target_bit=2")
    trials = chosen.trials_by_cell(sweep)[cell.id]
    assert len(trials) == 4
    rate, strength = {"train.learning_rate": None}, {"lsq.strength": None}
    assert chosen.weak(cell, trials[:3], rate) == []
    assert chosen.weak(cell, trials[:2], rate) == ["2 trials for 1 setting"]
    assert chosen.weak(cell, trials, rate | strength) == ["4 trials for 2 settings"]
    assert chosen.weak(cell, trials, rate | strength, pruned=2) == []
    assert chosen.weak(cell, trials[:1], rate | strength) == ["1 of 4 trials finished"]  # says it already


def test_verdicts_that_rest_on_them_are_marked(hardly: Path) -> None:
    (group,) = make_groups(load_results(hardly, "large"))
    compared = comparisons.of_group(group)
    assert compared
    doubts = {(str(one.at), one.first.label): one.doubts for one in compared.rows}
    few, chance = "ste@2: 1 of 4 trials finished", "oscillation@3: best trial at chance"
    assert (doubts["2", "lsq@2"], doubts["3", "oscillation@3"], doubts["3", "lsq@3"]) == (few, chance, "")
    assert f"({few}) |" in comparisons.to_markdown(compared)
    assert set(comparisons.to_frame(compared.rows, compared.metric)["tuning"]) == {few, chance, ""}
    first, second, third = summary.sentences(compared)
    assert re.search(r"ste@2( has \d+\.\d %)? \(([+-]\d+\.\d, )?1 of 4 trials finished\)", first)
    assert re.search(r"oscillation@3( has \d+\.\d %)? \(([+-]\d+\.\d, )?best trial at chance\)", second)
    assert "trial" not in third
    tested = claims.make_claims(group)
    told = {claim.key: claim.doubts for claim in tested}
    assert told == {"a": few, "b": chance, "c": few, "d": chance, "e": f"{few}; {chance}"}
    assert f"({few}) |" in claims.to_markdown(tested)
    assert "tuning" in claims.to_frame(tested)


def test_the_page_marks_them(hardly: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blank_pictures(monkeypatch)
    make_figures.main(["--root", str(hardly)])
    assert "note: hardly tuned, so that verdicts on them say little: ste,target_bit=2" in capsys.readouterr().out
    page = (hardly / "large/figures/report.html").read_text()
    assert "; rests on ste@2: 1 of 4 trials finished" in page
    assert "(ste@2: 1 of 4 trials finished)</td>" in page


def test_the_known_numbers_of_classes_are_those_of_the_data_sets(tmp_path: Path) -> None:
    for name, classes in chosen.CLASSES.items():
        module = find(name)
        root = {} if name == "digits" else {"root": tmp_path, "download": True}
        assert module.shape(module.Config(**root))[1] == classes, name
