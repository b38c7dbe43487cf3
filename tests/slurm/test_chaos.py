"""A sweep under faults comes out as if nothing had happened: the short form of `make chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Cluster

import chaos


@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_killed_cancelled_and_requeued_workers_lose_and_repeat_nothing(cluster: Cluster, tmp_path: Path) -> None:
    sizes = {"epochs": 40, "trials": 2, "seeds": 2}  # 4 cells: 16 runs
    events = {"kill": 4, "scancel": 1, "requeue": 1, "controller": 1}
    assert chaos.carry_out(tmp_path, cluster.env, sizes, events, every_s=3.0, seed=1) == []
