"""A sweep on Slurm with its queue in PostgreSQL: the same numbers, and the password in no file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import postgres_server
import pytest
from postgres_server import PostgresServer
from slurm_sweep import MANY_RUNS, launch, on_slurm, rows, status

from harness.sweep.storage import PASSWORD_VARIABLE

if TYPE_CHECKING:
    from conftest import Cluster

why_not = postgres_server.available()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(240),
    pytest.mark.skipif(why_not is not None, reason=str(why_not)),
]


def test_workers_on_slurm_share_a_queue_in_postgresql(cluster: Cluster, tmp_path: Path) -> None:
    ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "local", "--workers", "2")
    assert ended == 0, output
    with PostgresServer() as server:
        env = {**cluster.env, PASSWORD_VARIABLE: server.password, "WANDB_MODE": "offline"}
        text = MANY_RUNS.replace('wandb: "off"', "wandb: offline") + f"storage: {server.database('sweeps')}\n"
        ended, output = launch(tmp_path, text, env, "slurm", *on_slurm("--workers", "2", "--wait"))
        assert ended == 0, output
        found = status(tmp_path / "slurm/many", env)
        assert (found["state"], found["left"]) == ("complete", 0)
        assert server.password not in output
    assert rows(tmp_path / "slurm/many") == rows(tmp_path / "local/many")
    assert not (tmp_path / "slurm/many/study.log").exists()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if server.password.encode() in path.read_bytes()]
