"""Where a sweep's queue lives: a journal file beside the results, or a database.

The journal is right for anything one file system serves. A database takes over beyond a few hundred workers
(slurm/README.md). Its password comes from the environment and reaches no file.
"""

import fcntl
import importlib.util
import os
import random
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from harness.core.errors import UserError, masked
from harness.records.files import read_json, write_json
from harness.records.sweep_directory import SweepDirectory

JOURNAL = "journal"
#: How long a worker waits for a database that does not answer.
PATIENCE_S = 600.0
Result = TypeVar("Result")
PASSWORD_VARIABLE = "HARNESS_STORAGE_PASSWORD"
#: What to import, and what to install, for a URL that names no driver.
_DRIVERS = {"postgresql": ("psycopg", "postgresql"), "mysql": ("pymysql", "mysql")}
#: What PostgreSQL and MySQL say when they refuse a login; waiting does not help then.
_LOCKED_OUT = ("password", "does not exist", "Access denied", "Unknown database")
#: How often two sweeps may meet while they make the tables of an empty database.
_TABLE_ATTEMPTS = 5


class _KernelLock(JournalFileOpenLock):
    """The journal's lock, held by the kernel: a killed worker cannot leave it behind (Optuna's waits 30 s).

    The kernel also wakes the next process. Polling every few milliseconds, as file lock libraries do, leaves 64 workers
    no time to work.
    """

    def __init__(self, journal: Path) -> None:  # the base class's own state is not used
        self._journal, self._path = journal, journal.with_suffix(".lock")
        self._held: int | None = None

    def acquire(self) -> bool:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._drop_torn_line()
        except BaseException:
            os.close(descriptor)
            raise
        self._held = descriptor
        return True

    def _drop_torn_line(self) -> None:
        """Cut off an incomplete last line (of a full disk); appending to it would make the journal unreadable."""
        with open(self._journal, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            while size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                size -= 1
            file.truncate(size)

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def open_storage(where: str, folder: Path) -> BaseStorage:
    """The storage of the sweep in `folder`: "journal" or a database's URL, as the sweep file has it.

    Raises UserError for a database that does not answer and for a driver that is not installed.
    """
    if where == JOURNAL:
        path = SweepDirectory(folder).journal
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return JournalStorage(JournalFileBackend(str(path), lock_obj=_KernelLock(path)))
        except (ValueError, KeyError, AssertionError) as error:  # Optuna's error depends on the damaged line
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}); move it away and launch again: the queue is "
                "then rebuilt from the records, and no finished run is repeated"
            ) from None
    return _database(where, folder)


def study_prefix(where: str, folder: Path) -> str:
    """What begins the names of this sweep's studies in a database that others share; nothing in a journal."""
    if where == JOURNAL:
        return ""
    path = SweepDirectory(folder).storage
    if read_json(path) is None:
        write_json(path, {"prefix": f"{folder.name}-{uuid.uuid4().hex[:8]}/"})
    return str(read_json(path)["prefix"])


def _database(where: str, folder: Path) -> BaseStorage:
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(where)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise UserError(f"storage: {where!r} is no database's URL: {error}") from None
    backend = url.get_backend_name()
    module, extra = _DRIVERS.get(backend, ("sqlite3", ""))
    if "+" not in url.drivername and backend in _DRIVERS:
        url = url.set(drivername=f"{backend}+{module}")
        if importlib.util.find_spec(module) is None:
            raise UserError(f"storage: {where!r} needs {module}; install it with: pip install -e '.[{extra}]'")
    arguments: dict[str, Any] = {"pool_pre_ping": True}  # reconnects to a server that was restarted
    password = os.environ.get(PASSWORD_VARIABLE)
    if password and backend in _DRIVERS:  # beside the URL, which error messages may show
        arguments["connect_args"] = {"password": password}
    try:
        storage = _connect(url.render_as_string(hide_password=False), arguments, folder)
    except ImportError as error:
        raise UserError(f"storage: {where!r}: {error}") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        hint = f"(a password is read from ${PASSWORD_VARIABLE})"
        raise UserError(f"storage: {where!r} does not answer: {_reason(error)} {hint}") from None
    except RuntimeError as error:  # the tables of another version of Optuna
        raise UserError(f"storage: {where!r}: {_reason(error)}") from None
    # Optuna keeps finished trials, which do not change, so that they are read from the server once.
    return _patient(optuna.storages.get_storage(storage), folder)


def _connect(url: str, arguments: dict[str, Any], folder: Path) -> BaseStorage:
    files = SweepDirectory(folder)

    def opened(attempts: int = _TABLE_ATTEMPTS) -> BaseStorage:
        try:
            with files.lock("storage"):  # two processes that make the tables at once fail both
                return optuna.storages.RDBStorage(url, engine_kwargs=dict(arguments))
        except Exception as error:
            if not attempts or "already exists" not in str(error):
                raise
        time.sleep(random.uniform(0.2, 1.0))  # another sweep makes the tables, under the lock of its own folder
        return opened(attempts - 1)

    # A launch reports an error at once. A worker waits: it starts after a launch that could connect.
    return patiently(opened, files.stop.exists) if "SUBMITIT_FOLDER" in os.environ else opened()


def _patient(storage: BaseStorage, folder: Path) -> BaseStorage:
    """A storage whose every call waits for a database that does not answer.

    Waiting around larger steps is not enough: a claim that fails half-way and is repeated leaves its trial without a
    worker, an error in the middle of a run counts as the run's own, and a launch that shows progress would end.
    """
    stop = SweepDirectory(folder).stop

    def waiting(name: str) -> Callable[..., Any]:
        method = getattr(storage, name)
        return lambda self, *args, **kwargs: patiently(lambda: method(*args, **kwargs), stop.exists)

    methods = {name: waiting(name) for name in vars(BaseStorage) if not name.startswith("_")}
    patient: BaseStorage = type("PatientStorage", (BaseStorage,), methods)()
    return patient


class StorageAway(UserError):
    """A database has not answered for PATIENCE_S."""


def patiently(action: Callable[[], Result], should_stop: Callable[[], bool]) -> Result:
    """Do something with a storage, waiting for a database that does not answer for a while. Raises StorageAway."""
    end, wait_s = time.monotonic() + PATIENCE_S, 1.0
    while True:
        try:
            return action()
        except Exception as error:
            if not _is_away(error):
                raise
            if time.monotonic() > end or should_stop():
                text = f"storage: {_reason(error)}; launch again when it answers: what is finished stays"
                raise StorageAway(text) from error
            print(f"storage: {_reason(error)}; trying again in {wait_s:.0f} s", flush=True)
        time.sleep(wait_s * random.uniform(0.8, 1.2))  # or all workers would come back at once
        wait_s = min(2 * wait_s, 30.0)


def _is_away(error: Exception) -> bool:
    """Whether waiting may help: not with a wrong password, nor with a value that the database does not take."""
    import sqlalchemy

    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    # The last where Optuna catches the first of them and asks again within the transaction that it has ended.
    away = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.PendingRollbackError)
    return isinstance(cause, away) and not any(words in str(cause) for words in _LOCKED_OUT)


def _reason(error: Exception) -> str:
    """The database's error in one line, without Optuna's error around it."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    return masked(" ".join(str(error).split("\n")[0].split()))
