"""What of a launched sweep's cells a refusal names: what was edited, and not what was added."""

import re
from pathlib import Path
from typing import Any

import pytest
from three_cells import RAW, spec

from harness.core.errors import UserError
from harness.sweep.changes import changed_keys, check_change
from harness.sweep.config import plain
from harness.sweep.queue import open_sweep

CELL: dict[str, Any] = {"methods": "lsq", "set": {"target_bit": 3}, "search": {"train.learning_rate": [0.001, 0.01]}}


@pytest.mark.parametrize(
    ("cells", "changed"),
    [
        ([*RAW["cells"][:2], CELL], ["cells.2.methods", "cells.2.search", "cells.2.set"]),
        ([CELL, *RAW["cells"][1:], CELL], ["cells.0.methods", "cells.0.set"]),
        (RAW["cells"][:2], ["cells (3 then, 2 now)"]),
        ([*RAW["cells"], CELL], ["cells (3 then, 4 now)"]),
    ],
)
def test_cells_that_differ_are_counted_from_0(cells: list[dict[str, Any]], changed: list[str]) -> None:
    found = changed_keys(plain(spec()), plain(spec(cells=cells)))
    assert sorted({".".join(key.split(".")[:3]) for key in found}) == changed


@pytest.mark.parametrize(
    "added",
    [
        {"cells": [CELL, *RAW["cells"]]},
        {"cells": [RAW["cells"][0], {**RAW["cells"][1], "grid": {"target_bit": [2, 3, 4]}}, RAW["cells"][2]]},
    ],
)
def test_an_added_cell_is_no_difference_beside_another(tmp_path: Path, added: dict[str, Any]) -> None:
    open_sweep(spec(), tmp_path)
    with pytest.raises(UserError, match=r"that differs in: base\.train\.epochs\. Only"):
        check_change(tmp_path / "s", spec(base={**RAW["base"], "train": {"epochs": 2}}, **added))
    check_change(tmp_path / "s", spec(**added))


SEARCHED = {"train.learning_rate": [0.5, 0.25]}
GROWN = RAW["cells"][1] | {"grid": {"target_bit": [2, 3, 4]}}


@pytest.mark.parametrize(
    ("cells", "refused"),
    [
        ([RAW["cells"][0], GROWN | {"search": SEARCHED}, RAW["cells"][2]], ["cells.1.search"]),
        ([RAW["cells"][0] | {"search": SEARCHED}, GROWN, RAW["cells"][2], CELL], ["cells.0.search"]),
        ([CELL, RAW["cells"][0] | {"search": SEARCHED}, GROWN, RAW["cells"][2]], ["cells.1.search"]),
        ([*RAW["cells"][:2], CELL, CELL], ["cells.2.methods", "cells.2.search", "cells.2.set"]),
        ([GROWN, RAW["cells"][0]], ["cells (3 then, 2 now)"]),
    ],
)
def test_only_what_is_refused_of_cells_is_named(
    tmp_path: Path, cells: list[dict[str, Any]], refused: list[str]
) -> None:
    open_sweep(spec(), tmp_path)
    with pytest.raises(UserError, match="that differs in: ") as raised:
        check_change(tmp_path / "s", spec(cells=cells, final={"seeds": [0, 1, 2]}, tune={"trials": 3}))
    named = str(raised.value).partition("differs in: ")[2].partition(". Only")[0]
    keys = re.findall(r"cells \(.*\)|[\w.]+", named)
    assert sorted({".".join(key.split(".")[:3]) for key in keys}) == refused


def test_values_added_to_the_grid_of_all_cells_are_no_difference_beside_another(tmp_path: Path) -> None:
    open_sweep(spec(grid={"train.batch_size": [16, 32]}), tmp_path)
    edited = [RAW["cells"][0] | {"search": SEARCHED}, *RAW["cells"][1:]]
    with pytest.raises(UserError, match=r"that differs in: cells\.0\.search\.train\.learning_rate\S* Only"):
        check_change(tmp_path / "s", spec(grid={"train.batch_size": [16, 32, 64]}, cells=edited))
