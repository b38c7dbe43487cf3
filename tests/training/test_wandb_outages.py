"""Real wandb against a stand-in server that is away: no run waits long for it, and no history is lost."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_common import assert_complete, config, epochs, fresh_server, holds_key, run_until, sync
from wandb_server import WandbServer

from harness.core.errors import Stopped
from harness.records import schema
from harness.training import wandb_mirror
from harness.training.run import RunContext, run
from harness.training.wandb_mirror import Mirror

#: The two ways of being away; the slow suite tries both.
AWAY = [pytest.param(False, id="503"), pytest.param(True, id="silent", marks=pytest.mark.slow)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with fresh_server(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Waits of a second or two in place of half a minute; returns how much longer than usual a run may take."""
    monkeypatch.setattr(wandb_mirror, "START_PATIENCE_S", 2.0)
    monkeypatch.setattr(wandb_mirror, "FINISH_PATIENCE_S", 2.0)
    return 15.0


@pytest.mark.parametrize("silent", AWAY)
def test_away_at_the_start(
    silent: bool, server: WandbServer, tmp_path: Path, impatient: float, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted, begun = config(), time.monotonic()
    server.pause(silent)
    run(wanted, tmp_path)
    assert time.monotonic() - begun < impatient
    assert server.refused > 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B: ")]
    assert len(said) == 1
    assert ("deadline exceeded" if silent else "503") in said[0]
    assert f"(later: wandb sync {tmp_path}/wandb/offline-run-*)" in said[0]
    server.resume()
    sync(tmp_path)
    assert_complete(server, wanted, tmp_path)


@pytest.mark.slow
def test_the_next_run_does_not_ask(
    server: WandbServer, tmp_path: Path, impatient: float, capfd: pytest.CaptureFixture[str]
) -> None:
    server.pause()
    for name in ("first", "second"):
        refused = server.refused
        Mirror(config(), name, tmp_path / name).finish({}, {}, tmp_path / "best")
        assert (server.refused == refused) == (name == "second")
    assert len(list(tmp_path.glob("*/wandb/offline-run-*"))) == 2
    assert capfd.readouterr().err.count("the run is mirrored offline") == 2


@pytest.mark.slow
def test_away_when_a_run_goes_on(server: WandbServer, tmp_path: Path, impatient: float) -> None:
    wanted = config()
    run_until(2, wanted, tmp_path)
    server.pause()
    run(wanted, tmp_path)
    server.resume()
    assert epochs(server, wanted.run_id()) == [1, 2]
    sync(tmp_path)
    assert_complete(server, wanted, tmp_path)


def test_back_when_a_run_goes_on(server: WandbServer, tmp_path: Path) -> None:
    """What an earlier start left in offline files is sent by the later one, and not once more by `wandb sync`."""
    wanted = config()
    run_until(2, config(wandb="offline"), tmp_path)
    run(wanted, tmp_path)
    assert_complete(server, wanted, tmp_path)
    assert "No runs to sync" in sync(tmp_path)
    assert_complete(server, wanted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("silent", AWAY)
def test_away_at_the_end(
    silent: bool, server: WandbServer, tmp_path: Path, impatient: float, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted, begun = config(), time.monotonic()
    run(wanted, tmp_path, RunContext(lambda metrics: server.pause(silent) if metrics[schema.EPOCH] == 2 else None))
    assert time.monotonic() - begun < impatient
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B: ")]
    (folder,) = tmp_path.glob("wandb/run-*")
    assert [line.partition("(later: ")[2] for line in said] == [f"wandb sync --include-online {folder})"]
    server.resume()
    sync(tmp_path, "--include-online")
    assert_complete(server, wanted, tmp_path)
    assert not holds_key(tmp_path)


@pytest.mark.slow
def test_away_while_a_run_stops(server: WandbServer, tmp_path: Path, impatient: float) -> None:
    """The next start sends what the last one could not."""
    wanted = config()
    seen: list[int] = []

    def epoch_done(metrics: dict[str, Any]) -> None:
        seen.append(metrics[schema.EPOCH])
        server.pause()

    with pytest.raises(Stopped):
        run(wanted, tmp_path, RunContext(epoch_done, lambda: 3 in seen))
    server.resume()
    Mirror._ask_again = 0.0
    run(wanted, tmp_path)
    assert_complete(server, wanted, tmp_path)
    assert server.sent_again == 0
