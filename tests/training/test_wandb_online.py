"""Real wandb against a stand-in server: what arrives, and that interruptions leave no gap and nothing twice."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_common import assert_complete, config, epochs, fresh_server, holds_key, run_until, sync
from wandb_server import WandbServer

from harness.records.wandb_names import tag_of
from harness.training.run import RunContext, run


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with fresh_server(tmp_path, monkeypatch) as server:
        yield server


def test_an_online_run_arrives(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SWEEP_ID": "abcdefgh", "SERVICE": "3-999999-unix-/nowhere", "PROJECT": "other"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wanted = config()
    run(wanted, tmp_path, context=RunContext(tags=("my-sweep", "x" * 65)))
    received = server.runs[wanted.run_id()]
    assert (received.group, received.job_type, received.name) == ("mlp5/ste/w3", "final", "mlp5/ste/w3/s0")
    assert received.tags == ["my-sweep", tag_of("x" * 65), "final"]
    assert received.project == wanted.runtime.wandb_project
    assert {key: received.config[key] for key in wanted.model_dump()} == wanted.model_dump(mode="json")
    assert_complete(server, wanted, tmp_path)
    assert server.sent_again == 0
    assert not holds_key(tmp_path)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_stopped_run_goes_on(mode: str, server: WandbServer, tmp_path: Path) -> None:
    wanted = config(wandb=mode)
    run_until(2, wanted, tmp_path)
    if mode == "online":
        received = server.runs[wanted.run_id()]
        assert epochs(server, wanted.run_id()) == [1, 2]
        assert received.preempting
        assert received.exit_code == 1
    run(wanted, tmp_path)
    if mode == "offline":
        assert server.runs == {}
        assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2
        sync(tmp_path)
    assert_complete(server, wanted, tmp_path)
    assert server.sent_again == 0
    assert not holds_key(tmp_path)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_an_older_checkpoint_repeats_no_epoch(mode: str, server: WandbServer, tmp_path: Path) -> None:
    """As after a hard kill: W&B has epochs that the run carries out again."""
    wanted = config(wandb=mode)
    run_until(1, wanted, tmp_path)
    older = (tmp_path / "checkpoint.pt").read_bytes()
    run_until(3, wanted, tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(older)
    run(wanted, tmp_path)
    if mode == "offline":
        sync(tmp_path)
    assert_complete(server, wanted, tmp_path)
    assert server.sent_again == 0


#: Runs, keeps the checkpoint of epoch 1, and is killed after epoch 3, with W&B's own process when told so.
KILLED = """
import os, signal, shutil, sys
from pathlib import Path
from harness.training.config import complete
from harness.training.run import RunContext, run

directory, everything = Path(sys.argv[1]), sys.argv[3] == "everything"

def epoch_done(metrics):
    if metrics["epoch"] == 1:
        shutil.copy(directory / "checkpoint.pt", directory / "older")
    if metrics["epoch"] == 3:
        for thread in Path("/proc/self/task").iterdir() if everything else ():
            for child in (thread / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

import json
run(complete(json.loads(sys.argv[2])), directory, RunContext(epoch_done))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for its children in /proc")
@pytest.mark.parametrize("victim", ["program", "everything"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_killed_run_goes_on(mode: str, victim: str, server: WandbServer, tmp_path: Path) -> None:
    wanted = config(wandb=mode)
    command = [sys.executable, "-c", KILLED, str(tmp_path), wanted.model_dump_json(), victim]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    (tmp_path / "older").rename(tmp_path / "checkpoint.pt")
    run(wanted, tmp_path)
    if mode == "offline":
        sync(tmp_path)
    assert_complete(server, wanted, tmp_path)
    assert not holds_key(tmp_path)


def test_the_summary_may_be_ahead(server: WandbServer, tmp_path: Path) -> None:
    """W&B sends an epoch's summary before its row, and a kill may fall between."""
    wanted = config()
    run_until(2, wanted, tmp_path)
    server.runs[wanted.run_id()].summary["epoch"] = 3
    run(wanted, tmp_path)
    assert_complete(server, wanted, tmp_path)


@pytest.mark.slow
def test_the_server_takes_tables_and_histograms(server: WandbServer, tmp_path: Path) -> None:
    import wandb

    with wandb.init(id="rich", dir=tmp_path) as rich:
        rich.log({"weights": wandb.Histogram([1, 2, 3])})
        rich.log({"layers": wandb.Table(columns=["layer", "flips"], data=[["net.0", 3]])})
    received = server.runs["rich"]
    assert received.history[0]["weights"]["_type"] == "histogram"
    assert received.history[1]["layers"]["_type"] == "table-file"
    assert received.exit_code == 0
