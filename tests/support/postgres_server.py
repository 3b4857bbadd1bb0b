"""A PostgreSQL server of the tests' own, from the programs that the machine has."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.appliance_process import PATIENCE, free_port, wait_for

MISSING: Final = "PostgreSQL is not installed (initdb is neither in /usr/lib/postgresql nor on PATH)"
_LOCALE: Final = ("--locale=C.UTF-8", "--encoding=UTF8")
_SETTINGS: Final = (*("-c", "max_connections=200", "-c", "timezone=America/New_York"),)
_LIGHT: Final = (
    *("-c", "fsync=off", "-c", "full_page_writes=off"),
    *("-c", "shared_buffers=32MB", "-c", "max_wal_size=256MB"),
)


def programs() -> Path | None:
    """Return the folder with PostgreSQL's programs; None if there is none."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = installed[-1] if installed else shutil.which("initdb")
    return None if found is None else Path(found).parent


class PostgresServer:
    """A server with a Unix socket. The superuser is ``postgres``; there is no password.

    With ``durable``, it has its usual settings: a commit waits for the disk. With ``address``, it also
    listens on this address of the machine, and accepts clients from all others.
    """

    def __init__(self, folder: Path, *, durable: bool = False, address: str | None = None) -> None:
        bin = programs()
        assert bin is not None, MISSING
        self._bin = bin
        self.folder = folder
        self._durable = durable
        self._address = address
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _other_user()
        folder.chmod(0o755)
        self._data, self._log = folder / "data", folder / "log"
        self._data.mkdir(mode=0o700)
        self._log.touch()
        if self._user is not None:
            for path in (folder, self._data, self._log):
                shutil.chown(path, self._user)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync", *_LOCALE)
        if address is not None:
            with (self._data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all all trust\n")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        done = subprocess.run(command, user=self._user, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = _SETTINGS if self._durable else (*_SETTINGS, *_LIGHT)
        settings = (*settings, "-c", f"listen_addresses={self._address or ''}")
        if self._address is not None:
            settings = (*settings, "-p", str(self._port))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._bin / "postgres",
                    "-D",
                    self._data,
                    "-k",
                    self.folder,
                    *settings,
                ],
                user=self._user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        port = () if self._address is None else ("-p", str(self._port))
        while subprocess.run([self._bin / "pg_isready", "-q", "-h", self.folder, *port]).returncode:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def stop(self, *, mode: str = "immediate") -> None:
        """Stop the server: ``immediate`` as a crash does, ``fast`` with a farewell to all clients."""
        if self._process is not None:
            self._run("pg_ctl", "stop", "-s", "-D", str(self._data), "-m", mode)
            self._process.wait()
            self._process = None

    def add_user(self, name: str, password: str) -> None:
        """Add a user that needs a password and has a database of the same name."""
        self.query(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        self.query(f"CREATE DATABASE {name} OWNER {name}")
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"local all {name} scram-sha-256\n{rules.read_text()}")
        self.query("SELECT pg_reload_conf()")
        while self.query(f"SELECT 1 FROM pg_hba_file_rules WHERE '{name}' = ANY (user_name)") == []:
            pass

    def copy(self, database: str, other: str) -> None:
        """Save a database with pg_dump, and restore it with pg_restore into a new one."""
        self.query(f'CREATE DATABASE "{other}"')
        file, access = str(self.folder / "dump"), ("-h", str(self.folder), "-U", "postgres")
        self._run("pg_dump", "--format=custom", f"--file={file}", *access, database)
        self._run("pg_restore", "--exit-on-error", *access, "-d", other, file)

    def url(self, database: str = "postgres") -> str:
        if self._address is not None:
            return f"postgresql://postgres@{self._address}:{self._port}/{database}"
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def query(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def wait_until_idle(self, database: str) -> None:
        """Wait until all predictions have ended, and have moved to their final table."""
        unfinished = (
            "SELECT (SELECT count(*) FROM unindexed_predictions),"
            " (SELECT count(*) FROM predictions WHERE status IN ('starting', 'processing'))"
        )
        wait_for(lambda: self.query(unfinished, database) == [(0, 0)], "the end of all predictions")


def _other_user() -> str | None:
    """Return another user if this process is root, as whom PostgreSQL does not run."""
    if os.getuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextlib.contextmanager
def running(*, durable: bool = False, address: str | None = None) -> Iterator[PostgresServer]:
    """Run a server in a folder of its own: the path of a Unix socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        server = PostgresServer(folder, durable=durable, address=address)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
