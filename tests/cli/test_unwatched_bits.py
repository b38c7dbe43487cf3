"""A launch says at which target bits no float training's oscillations are counted."""

from typing import Any

import pytest
from cli_sweep import SEARCH, Cli, edited

from harness.cli import unwatched
from harness.sweep.cells import expand
from harness.sweep.config import SweepConfig, read_sweep
from harness.sweep.queue import open_sweep

FLOAT: dict[str, Any] = {
    "methods": "none",
    "set": {"watch_bit": 2},
    "search": {"train.learning_rate": [1e-3, 1e-2]},
}
WATCHING = FLOAT | {"set": {"watch_bit": 2, "also_watch": [3]}}


def notes(edits: dict[str, Any], launched: bool = False) -> list[str]:
    spec = SweepConfig.model_validate(edited(edits))
    cells = expand(spec, checked=False)
    return unwatched.notes(spec, cells, [cell.id for cell in cells] if launched else [])


@pytest.mark.parametrize(
    ("edits", "launched", "said"),
    [
        ({"cells/1": FLOAT}, False, "not counted at 3 bits, for which other cells train; set: {also_watch: [3]} there"),
        (
            {"cells/1": WATCHING, "cells/0/grid/target_bit": [2, 3, 4]},
            False,
            "at 4 bits, for which other cells train; set: {also_watch: [3, 4]}",
        ),
        ({"cells/1": WATCHING, "cells/0/grid/target_bit": [2, 3, "w4a8"]}, True, "methods: none, set: {watch_bit: 4}"),
        ({"cells/1": FLOAT, "cells/0/grid/target_bit": [3, 4]}, True, "set: {watch_bit: 3, also_watch: [4]}"),
        (
            {"cells/1": FLOAT, "cells/0/grid": {}, SEARCH: {"target_bit": [2, 5]}, "objective": "mean"},
            False,
            "at 5 bits",
        ),
    ],
)
def test_a_target_that_no_float_cell_watches_is_said(edits: dict[str, Any], launched: bool, said: str) -> None:
    (note,) = notes(edits, launched)
    assert note.startswith("note: cell none,watch_bit=2")
    assert said in note


@pytest.mark.parametrize(
    "edits", [{}, {"cells/1": WATCHING}, {"cells/1": FLOAT | {"set": {}, "grid": {"watch_bit": [2, 3]}}}]
)
def test_nothing_is_said_where_all_are_watched_or_nothing_is_float(edits: dict[str, Any]) -> None:
    assert notes(edits) == []


def test_a_target_that_is_added_to_a_launched_sweep_is_said(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    open_sweep(read_sweep(cli.file(edited({"cells/1": WATCHING}))), cli.root)
    grown = cli.file(edited({"cells/1": WATCHING, "cells/0/grid/target_bit": [2, 3, 4]}))
    ended = cli.run_here(grown, "--dry-run", "--runs")
    assert ended.returncode == 0, ended.stderr
    assert "it was launched so; a further cell counts them: methods: none, set: {watch_bit: 4}" in ended.stdout


UNWATCHED = {"cells/1": FLOAT}
GROWN = {"cells/0/grid/target_bit": [2, 3, 4]}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, UNWATCHED, "set: {also_watch: [3]} there counts them"),
        (UNWATCHED, UNWATCHED, "it was launched so"),
        (UNWATCHED, UNWATCHED | {"base/runtime": {"device": "cpu"}, "tune/trials": 3}, "it was launched so"),
        ({}, {"cells/1": FLOAT}, "set: {also_watch: [3]} there counts them"),  # a cell that a launch may add
        (WATCHING_ALL := {"cells/1": WATCHING}, UNWATCHED, "set: {also_watch: [3]} there counts them"),
        (WATCHING_ALL, UNWATCHED | GROWN, "set: {also_watch: [3, 4]} there counts them"),
        (UNWATCHED, UNWATCHED | {"base/train/epochs": 2}, "set: {also_watch: [3]} there counts them"),
    ],
    ids=["first", "same", "grown", "added cell", "edited cell", "edited and grown", "edited base"],
)
def test_only_cells_that_are_as_launched_are_said_to_be(
    cli: Cli, before: dict[str, Any] | None, after: dict[str, Any], said: str
) -> None:
    if before is not None:
        open_sweep(read_sweep(cli.file(edited(before))), cli.root)
    spec = read_sweep(cli.file(edited(after)))
    (note,) = unwatched.of_sweep(spec, expand(spec), cli.root / spec.name)
    assert said in note
