"""What a launch says of a database that it cannot use: one line, exit status 2, never a password."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import postgres_server
import pytest
import sqlalchemy
import studies_common
from postgres_server import HOST, USER, PostgresServer
from tiny_sweep import here, launch, write_sweep

from harness.sweep import plan
from harness.sweep.storage import PASSWORD_VARIABLE, patiently

why_not = postgres_server.available()
needs_postgres = pytest.mark.skipif(why_not is not None, reason=str(why_not))
#: Nothing listens there: only root could.
CLOSED = f"{HOST}:1"
SECRET = "s3cret-w0rd"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


def refused(
    tmp_path: Path, storage: str, *extra: str, password: str = SECRET, launch: Callable[..., tuple[int, str]] = here
) -> str:
    """The one line that refuses a launch, in this process or by `launch`."""
    sweep = write_sweep(tmp_path, **{"workers: 2": f"workers: 2\nstorage: {storage}"})
    status, output = launch(sweep, tmp_path / "runs", *extra, env={PASSWORD_VARIABLE: password})
    assert status == 2, output
    assert SECRET not in output
    assert not password or password not in output
    errors = [line for line in output.splitlines() if not line.startswith("checking ")]
    assert [line.partition(" ")[0] for line in errors] == ["error:"], output
    return output


@needs_postgres
@pytest.mark.parametrize("password", [SECRET, ""], ids=["wrong", "missing"])
def test_a_wrong_password_is_refused(server: PostgresServer, tmp_path: Path, password: str) -> None:
    url = server.url("postgres")
    line = refused(tmp_path, url, password=password)
    assert url in line
    assert ("authentication failed" if password else "no password supplied") in line
    assert PASSWORD_VARIABLE in line


@needs_postgres
def test_a_database_that_is_not_there_is_named(server: PostgresServer, tmp_path: Path) -> None:
    assert 'database "absent" does not exist' in refused(tmp_path, server.url("absent"), password=server.password)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "driver"), [("postgresql", "psycopg"), ("mysql", "pymysql")])
def test_a_server_that_is_not_there_is_named(tmp_path: Path, scheme: str, driver: str) -> None:
    pytest.importorskip(driver)
    # In a process of its own: a driver may warn where it is first imported.
    line = refused(tmp_path, f"{scheme}://{USER}@{CLOSED}/db", launch=launch)
    assert f"{scheme}://{USER}@{CLOSED}/db" in line
    assert "does not answer" in line
    assert "refused" in line


@pytest.mark.parametrize("url", [f"postgresql://{HOST}:port/db", f"postgresql+nothing://{HOST}/db"])
def test_a_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    assert url in refused(tmp_path, url)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "postgresql+psycopg"])
@pytest.mark.parametrize("place", ["file", "--set"])
def test_a_password_in_the_url_is_refused_and_not_shown(tmp_path: Path, scheme: str, place: str) -> None:
    url = f"{scheme}://{USER}:{SECRET}@{CLOSED}/db"
    if place == "file":
        line = refused(tmp_path, url)
    else:
        line = refused(tmp_path, "journal", "--set", f"storage={url}")
    assert f"{scheme}://{USER}:***@{CLOSED}/db" in line
    assert PASSWORD_VARIABLE in line
    assert not (tmp_path / "runs").exists()


def test_sqlite_is_for_one_worker(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'queue.db'}"
    line = refused(tmp_path, storage, "--gpus", "0,1")  # two slots, on a machine with one core as well
    assert "SQLite gives one trial to two workers" in line
    assert "--workers 1" in line
    assert not (tmp_path / "queue.db").exists()


def test_sweeps_that_make_the_tables_at_once_do_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, met = optuna.storages.RDBStorage.__init__, []

    def meet(*args: Any, **kwargs: Any) -> None:
        if len(met) < 2:  # what PostgreSQL says to the second process
            met.append('relation "studies" already exists')
            raise sqlalchemy.exc.ProgrammingError("CREATE TABLE studies", {}, Exception(met[-1]))
        make(*args, **kwargs)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", meet)
    sweep = studies_common.open_sweep(tmp_path, storage=f"sqlite:///{tmp_path / 'queue.db'}")
    plan.top_up(sweep)
    assert len(met) == 2
    assert plan.count(sweep)["tune"].waiting == 6


def test_a_query_cut_off_in_its_middle_is_made_again(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Optuna catches that the server has gone, and asks again in the transaction that ended with it."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    answers = iter([sqlalchemy.exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back"), 7])

    def query() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from answer
        return answer

    assert patiently(query, lambda: False) == 7
    assert "trying again in 1 s" in capsys.readouterr().out
