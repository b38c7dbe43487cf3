"""A PostgreSQL server for tests, from the system's packages: its own folder, port and password, gone afterwards.

with PostgresServer() as server:
    url = server.database("some_name")   # without the password, which is server.password
"""

import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

HOST, USER = "127.0.0.1", "harness"
#: How long the server may take to answer, or to end.
PATIENCE_S = 30.0


def available() -> str | None:
    """Why no server can be started here, or None."""
    if _binaries() is None:
        return "no PostgreSQL server (initdb) in PATH or /usr/lib/postgresql; Debian's package is postgresql"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody to run it"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed (pip install -e '.[postgresql]')"
    return None


def _binaries() -> Path | None:
    """The folder of initdb and postgres; the newest, where Debian has several."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in packaged), key=lambda path: float(path.parent.name), default=None)


def _unprivileged() -> pwd.struct_passwd | None:
    """A user that may run the server when the tests run as root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


class PostgresServer:
    """A server that listens on this machine only and wants a password of everybody. A context manager."""

    def __init__(self, durable: bool = False) -> None:
        # Durable commits wait for the disk: for measuring only, not for tests of what is said and done.
        self.password = secrets.token_urlsafe(18)
        self.port = _free_port()
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        try:
            self._create()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder)

    def url(self, database: str, user: str = USER) -> str:
        """What a sweep's key `storage` takes; it holds no password."""
        return f"postgresql://{user}@{HOST}:{self.port}/{database}"

    def database(self, name: str) -> str:
        """Create an empty database; returns its URL."""
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def connect(self, database: str = "postgres") -> Any:
        """A psycopg connection, for looking at what a sweep left."""
        import psycopg

        where: dict[str, Any] = {"host": HOST, "port": self.port, "user": USER, "dbname": database}
        return psycopg.connect(**where, password=self.password, autocommit=True)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",  # TCP alone: a socket's path has a length limit and would outlive a crash
            "fsync": "on" if self._durable else "off",
            "max_connections": 50,
            "dynamic_shared_memory_type": "mmap",  # files of its own folder, so that nothing stays in /dev/shm
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(self._folder / "log", "ab") as log:
            self._process = self._popen("postgres", "-D", "data", *options, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("PostgreSQL does not start: " + (self._folder / "log").read_text()[-2000:])
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server: kindly (which ends its connections), and by force when that takes long."""
        process, self._process = self._process, None
        if process is None:
            return
        # Fast shutdown, immediate shutdown (the server ends its children in both), then what no process survives.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            process.send_signal(number)
            try:
                process.wait(PATIENCE_S)
                return
            except subprocess.TimeoutExpired:
                continue

    def restart(self, away_s: float = 0.0) -> None:
        """Stop, stay away for a while, and start again on the same port."""
        self.stop()
        time.sleep(away_s)
        self.start()

    def _create(self) -> None:
        password = self._folder / "password"
        password.write_text(self.password)
        for path in (self._folder, password):
            if os.geteuid() == 0 and (user := _unprivileged()):
                os.chown(path, user.pw_uid, user.pw_gid)
            path.chmod(0o700 if path.is_dir() else 0o600)
        options = ("--auth=scram-sha-256", "--pwfile=password", "--encoding=UTF8", "--locale=C", "--no-sync")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = self._popen("initdb", "-D", "data", f"--username={USER}", *options, **pipes)
        output, _ = process.communicate(timeout=2 * PATIENCE_S)
        password.unlink()
        if process.returncode:
            raise RuntimeError(f"initdb: {output.decode(errors='replace')}")

    def _popen(self, program: str, *arguments: str, **kwargs: Any) -> "subprocess.Popen[bytes]":
        binaries = _binaries()
        assert binaries is not None
        if os.geteuid() == 0 and (user := _unprivileged()):
            kwargs |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        # A session of its own: Ctrl-C in the tests' terminal must not end the server before they are done with it.
        command = [str(binaries / program), *arguments]
        return subprocess.Popen(
            command, cwd=self._folder, env={"PATH": os.defpath, "LC_ALL": "C"}, start_new_session=True, **kwargs
        )

    def _answers(self) -> bool:
        """Whether it takes a login; a server that is starting refuses one after it listens."""
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def _free_port() -> int:
    """A port below those that the kernel hands to clients: one of them could take it while the server restarts."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
