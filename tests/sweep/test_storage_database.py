"""A sweep's queue in a database: a real PostgreSQL server, SQLite for one worker."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import postgres_server
import pytest
import studies_common
from postgres_server import PostgresServer
from studies_common import THREE, TWO, states
from tiny_sweep import RUNS, here, launch, records, rows, start, write_sweep

from harness.records.heartbeat import Heartbeat
from harness.records.run_directory import RunDirectory
from harness.sweep import plan, queue
from harness.sweep.storage import PASSWORD_VARIABLE, StorageAway

why_not = postgres_server.available()
needs_postgres = pytest.mark.skipif(why_not is not None, reason=str(why_not))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


@pytest.fixture
def url(server: PostgresServer, tmp_path: Path) -> str:
    """An empty database of this test's own."""
    return server.database(tmp_path.name)


def write(folder: Path, storage: str, **replaced: str) -> Path:
    return write_sweep(folder, **{"workers: 2": f"workers: 2\nstorage: {storage}", **replaced})


def env(server: PostgresServer) -> dict[str, str]:
    return {PASSWORD_VARIABLE: server.password}


@contextmanager
def started(sweep: Path, root: Path, server: PostgresServer) -> Iterator["subprocess.Popen[str]"]:
    """A launch under way; nothing of it is left when the test fails."""
    process = start(sweep, root, env=env(server))
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # its workers are of the same group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_records(root: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(records(root)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert count <= len(records(root)) < RUNS


def trained(root: Path) -> dict[str, int]:
    """How often each run went through its first epoch, by its log."""
    logs = (root / "tiny" / "runs").glob("*/log.txt")
    return {path.parent.name: path.read_text().count("\nepoch    1 ") for path in logs}


def mishaps(server: PostgresServer, database: str) -> list[str]:
    """What the queue remembers of failed runs and lost workers."""
    with server.connect(database) as connection:
        found = connection.execute("SELECT key FROM trial_user_attributes WHERE key IN ('failures', 'lost')")
        return [key for (key,) in found]


def leaks(root: Path, password: str) -> list[str]:
    """The files that hold a password, whatever they are."""
    files = [path for path in root.rglob("*") if path.is_file()]
    assert any("offline-run" in str(path) for path in files)  # W&B's files are among them
    return [str(path) for path in files if password.encode() in path.read_bytes()]


# For real


@needs_postgres
@pytest.mark.slow
def test_a_sweep_gives_the_same_numbers_as_with_the_journal_and_the_password_is_nowhere(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    offline = {'wandb: "off"': "wandb: offline"}
    status, output = launch(write(tmp_path, url, **offline), tmp_path / "runs", env=env(server))
    assert status == 0, output
    assert server.password not in output
    assert leaks(tmp_path, server.password) == []
    assert not (tmp_path / "runs" / "tiny" / "study.log").exists()
    status, output = here(write_sweep(tmp_path), tmp_path / "journal", "--cluster", "debug")
    assert status == 0, output
    assert len(records(tmp_path / "runs")) == RUNS
    assert rows(tmp_path / "runs") == rows(tmp_path / "journal")


@needs_postgres
@pytest.mark.slow
def test_killed_midway_it_finishes_without_repeating_a_run(server: PostgresServer, url: str, tmp_path: Path) -> None:
    sweep, root = write(tmp_path, url), tmp_path / "runs"
    with started(sweep, root, server):
        wait_for_records(root, 2)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("record.json")}
    status, output = launch(sweep, root, env=env(server))
    assert status == 0, output
    assert before.items() <= {path: path.stat().st_mtime_ns for path in root.rglob("record.json")}.items()
    assert len(records(root)) == RUNS
    assert {trained(root)[path.parent.name] for path in before} == {1}


@needs_postgres
@pytest.mark.slow
def test_a_server_that_goes_away_for_a_while_costs_nothing_but_time(tmp_path: Path) -> None:
    with PostgresServer() as server:  # its own: others would notice
        url, root = server.database("d"), tmp_path / "runs"
        with started(write(tmp_path, url), root, server) as process:
            wait_for_records(root, 2)
            server.restart(away_s=3.0)
            output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert server.password not in output
        assert mishaps(server, "d") == []
    assert trained(root) == dict.fromkeys(records(root), 1)
    assert len(records(root)) == RUNS


@pytest.mark.slow
def test_sqlite_works_for_one_worker(tmp_path: Path) -> None:
    sweep = write(tmp_path, f"sqlite:///{tmp_path / 'queue.db'}")
    status, output = launch(sweep, tmp_path / "runs", "--workers", "1")
    assert status == 0, output
    assert len(records(tmp_path / "runs")) == RUNS
    assert not (tmp_path / "runs" / "tiny" / "study.log").exists()


# The queue


@needs_postgres
def test_sweeps_of_one_name_in_one_database_do_not_see_each_other(
    server: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, server.password)
    one, other = (studies_common.open_sweep(tmp_path / name, storage=url) for name in ("one", "other"))
    plan.top_up(one)
    assert sum(states(other, TWO).values()) == 0
    plan.top_up(other)
    assert len(studies_common.claims(one)) == 6
    assert states(one, TWO) == {"RUNNING": 3}
    assert states(other, TWO) == {"WAITING": 3}
    assert states(studies_common.open_sweep(tmp_path / "one", storage=url), THREE) == {"RUNNING": 3}


def _claim_all(folder: str, worker: int, ready: Any, results: Any) -> None:
    sweep = queue.load_sweep(Path(folder))
    found = []
    with Heartbeat(RunDirectory(sweep.folder / "workers" / f"w{worker}")):  # or it would count as dead
        ready.wait(60)
        while (claim := queue.claim(sweep, f"w{worker}")) is not None:
            time.sleep(0.02)  # a run; without it one process is done before the others have woken up
            found.append((claim.cell.id, claim.trial.number))
            queue.tell(claim, [claim.trial.number / 100])
    results.put(found)


@pytest.mark.slow
@needs_postgres
def test_four_processes_claim_forty_trials_once_each(
    server: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, server.password)
    sweep = studies_common.open_sweep(tmp_path, tune={"trials": 20}, storage=url)
    plan.top_up(sweep)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(4), context.Queue()
    arguments = [(str(sweep.folder), worker, ready, results) for worker in range(4)]
    processes = [context.Process(target=_claim_all, args=given, daemon=True) for given in arguments]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    claimed = Counter(item for part in found for item in part)
    assert claimed == Counter((cell, number) for cell in (TWO, THREE) for number in range(20))
    assert sum(bool(part) for part in found) > 1  # or it proved nothing
    assert states(sweep, TWO) == states(sweep, THREE) == {"COMPLETE": 20}


@needs_postgres
def test_a_claim_waits_for_a_server_that_is_away_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with PostgresServer() as server:  # its own: others would notice
        monkeypatch.setenv(PASSWORD_VARIABLE, server.password)
        sweep = studies_common.open_sweep(tmp_path, storage=server.database("d"))
        plan.top_up(sweep)
        server.stop()
        back = threading.Timer(0.5, server.start)
        back.start()
        claims = studies_common.claims(sweep, "me")
        back.join()
        assert len(claims) == 6
        assert all(claim.trial.user_attrs == {"worker": "me"} for claim in claims)
        said = capsys.readouterr().out
        assert "refused; trying again in 1 s" in said.replace("Connection ", "")
        assert server.password not in said
        server.stop()
        (sweep.files.stop).touch()  # who is asked to stop does not wait
        with pytest.raises(StorageAway, match="launch again when it answers"):
            plan.count(sweep)
