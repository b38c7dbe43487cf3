"""A float run watched at several bit-widths: each tracker counts as if it were alone, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
from training_details_common import config

from harness.core.errors import Stopped
from harness.records import schema
from harness.training.run import RunContext, run


def float_run(tmp_path: Path, watch: int, *further: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record and the epochs of a float run."""
    lines: list[dict[str, Any]] = []
    wanted = config("none", target_bit=None, watch_bit=watch, also_watch=further)
    folder = tmp_path / "-".join(map(str, (watch, *further)))
    return run(wanted, folder, RunContext(lines.append)), lines


def test_every_tracker_counts_as_if_it_were_alone(tmp_path: Path) -> None:
    record, lines = float_run(tmp_path, 2, 3, 8)
    for bits in (3, 8):
        alone, expected = float_run(tmp_path, bits)
        histograms = record["threshold_histograms"][str(bits)]
        assert histograms == alone["threshold_histograms"][str(bits)]
        for line, other in zip(lines, expected, strict=True):
            for name in (schema.FREQUENCY, schema.FLIPS_PER_WEIGHT, schema.THRESHOLD_DISTANCE):
                assert line[schema.watched_at(name, bits)] == other[name]
    alone, expected = float_run(tmp_path, 2)
    assert record["rows"] == alone["rows"]
    assert [{name: line[name] for name in expected[0]} for line in lines] == expected
    assert record["run_id"] != alone["run_id"]


def test_histograms_are_of_all_weights_before_and_after(tmp_path: Path) -> None:
    record, _ = float_run(tmp_path, 2, 4)
    counts = [sum(found[when]) for found in record["threshold_histograms"].values() for when in ("before", "after")]
    assert len(set(counts)) == 1
    before, after = record["threshold_histograms"]["2"].values()
    assert before != after


def test_a_stopped_run_keeps_its_first_histograms_and_counts(tmp_path: Path) -> None:
    whole, lines = float_run(tmp_path, 2, 3)
    wanted = config("none", target_bit=None, watch_bit=2, also_watch=(3,))
    seen: list[int] = []
    with pytest.raises(Stopped):
        run(wanted, tmp_path / "stopped", RunContext(lambda metrics: seen.append(1), lambda: bool(seen)))
    later: list[dict[str, Any]] = []
    record = run(wanted, tmp_path / "stopped", RunContext(later.append))
    assert record["threshold_histograms"] == whole["threshold_histograms"]
    assert later == lines[1:]
