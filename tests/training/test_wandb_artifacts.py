"""The weights of the best epoch on W&B, against a stand-in server: whole, and only when they are asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_common import assert_complete, config, fresh_server, run_until, sync
from wandb_server import WandbServer

from harness.records import schema
from harness.training.config import RunConfig
from harness.training.run import RunContext, run

KEEPS = RunContext(keep_best=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with fresh_server(tmp_path, monkeypatch) as server:
        yield server


def assert_delivered(server: WandbServer, wanted: RunConfig, directory: Path) -> None:
    """The server has one artifact of the run, and in it, byte by byte, the file that the run left behind."""
    (artifact,) = server.artifacts.values()
    assert (artifact.name, artifact.type) == (f"best-{wanted.run_id()}", "model")
    assert sorted(artifact.aliases) == ["best", "latest"]
    assert artifact.metadata == {schema.METHOD: "mlp5/ste/w3"}
    weights = (directory / "best.safetensors").read_bytes()
    assert artifact.files == {"best.safetensors": weights}
    assert artifact.manifest["contents"]["best.safetensors"]["size"] == len(weights)
    assert artifact.committed


@pytest.mark.slow
def test_an_online_run_delivers_its_weights(server: WandbServer, tmp_path: Path) -> None:
    wanted = config(wandb_artifact=True)
    run(wanted, tmp_path, context=KEEPS)
    assert_delivered(server, wanted, tmp_path)
    assert_complete(server, wanted, tmp_path)


def test_an_offline_run_delivers_its_weights_when_synced(server: WandbServer, tmp_path: Path) -> None:
    wanted = config(wandb="offline", wandb_artifact=True)
    run(wanted, tmp_path, context=KEEPS)
    assert server.artifacts == {}
    sync(tmp_path)
    assert_delivered(server, wanted, tmp_path)
    assert_complete(server, wanted, tmp_path)


def test_an_interrupted_run_delivers_its_weights_once(server: WandbServer, tmp_path: Path) -> None:
    wanted = config(wandb_artifact=True)
    run_until(2, wanted, tmp_path)
    assert server.artifacts == {}
    run(wanted, tmp_path, context=KEEPS)
    assert_delivered(server, wanted, tmp_path)


@pytest.mark.parametrize(
    ("asked", "context"),
    [
        pytest.param({}, KEEPS, id="not asked for"),
        pytest.param({"wandb_artifact": True}, RunContext(keep_best=False), id="nothing kept"),
    ],
)
def test_otherwise_none_is_uploaded(
    asked: dict[str, bool], context: RunContext, server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = config(**asked)
    run(wanted, tmp_path, context=context)
    assert server.artifacts == {}
    assert "W&B: " not in capfd.readouterr().err
    assert_complete(server, wanted, tmp_path)
