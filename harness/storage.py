"""Where a sweep's queue lives: a journal file beside the results, or a database.

The journal is right for anything one file system serves. A database takes over beyond a few hundred workers
(slurm/README.md). Its password comes from the environment and reaches no file.
"""

import importlib.util
import os
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from harness.errors import UserError
from harness.record import read_json, write_json

JOURNAL = "journal"
#: How long a worker waits for a database that does not answer.
PATIENCE_S = 600.0
Result = TypeVar("Result")
PASSWORD_VARIABLE = "HARNESS_STORAGE_PASSWORD"
#: What to import, and what to install, for a URL that names no driver.
_DRIVERS = {"postgresql": ("psycopg", "postgresql"), "mysql": ("pymysql", "mysql")}


class _KernelLock(JournalFileOpenLock):
    """The journal's lock, held by the kernel: a killed worker cannot leave it behind (Optuna's waits 30 s)."""

    def __init__(self, journal: Path) -> None:  # nothing of the base's own state is used
        self._journal, self._lock = journal, FileLock(journal.with_suffix(".lock"))

    def acquire(self) -> bool:
        self._lock.acquire(poll_interval=0.01)
        self._drop_torn_line()
        return True

    def _drop_torn_line(self) -> None:
        """Cut off what a full disk left of a last line; anything appended to it would make the journal unreadable."""
        with open(self._journal, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            while size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                size -= 1
            file.truncate(size)

    def release(self) -> None:
        self._lock.release()


def open_storage(where: str, folder: Path) -> BaseStorage:
    """The storage of the sweep in `folder`: "journal" or a database's URL, as the sweep file has it.

    Raises UserError for a database that does not answer and for a driver that is not installed.
    """
    if where == JOURNAL:
        path = folder / "study.log"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=_KernelLock(path)))
    return _database(where, folder)


def study_prefix(where: str, folder: Path) -> str:
    """What sets this sweep's studies apart in a database that others share; nothing in a journal of its own."""
    if where == JOURNAL:
        return ""
    path = folder / "storage.json"
    if read_json(path) is None:
        write_json(path, {"prefix": f"{folder.name}-{uuid.uuid4().hex[:8]}/"})
    return str(read_json(path)["prefix"])


def _database(where: str, folder: Path) -> BaseStorage:
    import sqlalchemy

    url = sqlalchemy.make_url(where)
    backend = url.get_backend_name()
    module, extra = _DRIVERS.get(backend, ("sqlite3", ""))
    if "+" not in url.drivername and backend in _DRIVERS:
        url = url.set(drivername=f"{backend}+{module}")
        if importlib.util.find_spec(module) is None:
            raise UserError(f"storage: {where!r} needs {module}; install it with: pip install -e '.[{extra}]'")
    arguments: dict[str, Any] = {"pool_pre_ping": True}  # a server that was restarted is connected to anew
    password = os.environ.get(PASSWORD_VARIABLE)
    if password and backend in _DRIVERS:  # beside the URL, which error messages may show
        arguments["connect_args"] = {"password": password}
    try:
        with FileLock(folder / "storage.lock"):  # two processes that make the tables at once fail both
            storage = optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=arguments)
    except ImportError as error:
        raise UserError(f"storage: {where!r}: {error}") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(
            f"storage: {where!r} does not answer: {reason} (a password is read from ${PASSWORD_VARIABLE})"
        ) from None
    # Finished trials do not change, and are read from the server once.
    return optuna.storages.get_storage(storage)


def patiently(action: Callable[[], Result], asked_to_stop: Callable[[], bool]) -> Result:
    """Do something with a storage, waiting for a database that does not answer for a while."""
    end, wait_s = time.monotonic() + PATIENCE_S, 1.0
    while True:
        try:
            return action()
        except optuna.exceptions.StorageInternalError as error:
            if time.monotonic() > end or asked_to_stop():
                raise
            print(f"storage: {error}; trying again in {wait_s:.0f} s", flush=True)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 30.0)
