"""outcomes.json: which test samples were right, whichever way a test row was made, and what analysis makes of it."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from synthetic_sweep import SweepWriter

from analysis import by_sample, comparisons, library
from harness import evaluate
from harness.records import outcomes, schema
from harness.records.archive import _files
from harness.records.run_directory import RunDirectory
from harness.training.config import complete
from harness.training.run import run

RAW: dict[str, Any] = {
    "phase": "final",
    "methods": "ste",
    "target_bit": 3,
    "model": {"name": "mlp5", "width": 16},
    "data": {"name": "digits", "train_fraction": 0.2},
    "train": {"epochs": 1, "batch_size": 32},
    "deploy": {"bits": [2, 8], "scale": "keep_range"},
    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
}
#: What of 9 samples two methods have right with either of two seeds.
FIRST = {0: "111101110", 1: "101111110"}
SECOND = {0: "101101010", 1: "101011011"}


def read(folder: Path) -> list[dict[str, Any]]:
    return json.loads(RunDirectory(folder).outcomes.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 397])
def test_what_was_written_is_read(count: int) -> None:
    row = {"split": "test", "deploy": "rtn", "scale": "keep_step", "bits": 3, "activations": 4, "accuracy": 0.5}
    right = [i % 3 == 0 for i in range(count)]
    entry = outcomes.entry(row, right)
    assert outcomes.right_of(json.loads(json.dumps(entry))) == right
    assert schema.row_key(entry) == schema.row_key(row)


def test_shares_of_a_final_are_its_test_accuracies_and_added_rows_have_theirs(tmp_path: Path) -> None:
    record = run(complete(RAW), tmp_path)
    found = {schema.row_key(entry): outcomes.right_of(entry) for entry in read(tmp_path)}
    tested = [row for row in record["rows"] if row["split"] == "test"]
    assert [statistics.fmean(found[schema.row_key(row)]) for row in tested] == [row["accuracy"] for row in tested]
    assert len(found) == len(tested)
    assert evaluate.main([str(tmp_path), "--bits", "5"]) == 0
    assert [entry["bits"] for entry in read(tmp_path)] == [2, 3, 8, "float", 5]
    assert [outcomes.right_of(entry) for entry in read(tmp_path)[:4]] == list(found.values())
    assert "outcomes.json" in dict(_files(RunDirectory(tmp_path), final=True, epochs=False))


def test_trials_never_read_the_test_split(tmp_path: Path) -> None:
    run(complete({**RAW, "phase": "tune"}), tmp_path)
    assert not RunDirectory(tmp_path).outcomes.exists()


@pytest.fixture
def results(tmp_path: Path) -> library.Results:
    sweep = SweepWriter(tmp_path, seeds=(0, 1))
    sweep.add("ste", 2)
    sweep.add("oscillation", 2)
    sweep.write()
    for run_id, record in sweep.records.items():
        bits = (SECOND if run_id.startswith("ste") else FIRST)[record["config"]["seed"]]
        (row,) = (row for row in record["rows"] if (row["split"], row["bits"]) == ("test", 2))
        files = RunDirectory(sweep.folder / "runs" / run_id)
        outcomes.add(files, [outcomes.entry(row, [bit == "1" for bit in bits])])
    return library.load(tmp_path)


def test_methods_are_compared_sample_by_sample_within_a_seed(results: library.Results) -> None:
    differences = [sum(int(FIRST[seed][i]) - int(SECOND[seed][i]) for seed in (0, 1)) / 2 for i in range(len(FIRST[0]))]
    half = 1.959963984540054 * statistics.stdev(differences) / math.sqrt(9)
    found = by_sample.compare(results["oscillation@2"], results["ste@2"], 2)
    assert found
    assert (found.n, found.seeds) == (9, 2)
    wanted = [100 * (statistics.fmean(differences) + sign * half) for sign in (0, -1, 1)]
    assert [found.effect, found.low, found.high] == pytest.approx(wanted, abs=1e-9)
    assert by_sample.compare(results["oscillation@2"], results["ste@2"], 3) is None


def test_tables_have_the_interval_where_runs_have_kept_outcomes(results: library.Results) -> None:
    compared = comparisons.of_group(results.groups[0])
    assert compared
    assert compared.has_samples
    text = comparisons.to_markdown(compared)
    assert comparisons.OVER_SAMPLES in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert comparisons.to_latex(compared).count(comparisons.OVER_SAMPLES.replace("%", r"\%")) >= 1
    frame = results.compare("oscillation@2", "ste@2")
    assert frame["samples"].tolist()[0] == 9
    assert frame["sample_low"].isna().tolist() == [False, True, True, True, True]
