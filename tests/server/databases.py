"""Private databases for tests: real servers on free ports, in a folder of their own, run by nobody in particular."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from tests.ports import held_port

_START_SECONDS = 30.0
D = TypeVar("D", bound="Database")


class Database:
    """A server that can be stopped, frozen and started again.

    Attributes:
        url: where it is.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = as_nobody(self.command(), log=log.fileno())
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the database did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def answers(self) -> bool:
        raise NotImplementedError

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """SIGKILL: as if the machine had lost its power."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(20)

    def signal(self, number: signal.Signals) -> None:
        """To the server and all that it started."""
        if self.process is not None:
            for child in (self.process.pid, *children(self.process.pid)):
                os.kill(child, number)


class Postgres(Database):
    def __init__(self, folder: Path, port: int, programs: Path) -> None:
        super().__init__(folder, port)
        self._programs = programs
        self.url = f"postgresql://garrison@127.0.0.1:{self.port}/postgres"
        made = as_nobody(
            [
                str(programs / "initdb"),
                "-D",
                str(folder / "data"),
                "-A",
                "trust",
                "-U",
                "garrison",
                "--no-sync",
                "-E",
                "UTF8",
            ]
        )
        _, error = made.communicate(timeout=60)
        if made.returncode:
            raise RuntimeError(f"initdb: {error.decode()[-2000:]}")

    def command(self) -> list[str]:
        where = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        return [str(self._programs / "postgres"), "-D", str(self.folder / "data"), *where, "-c", "shared_buffers=16MB"]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def end(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, and recovered from the log at the next start."""
        super().end(signal.SIGQUIT if number == signal.SIGKILL else number)


class Redis(Database):
    def __init__(self, folder: Path, port: int, program: str, *settings: str) -> None:
        super().__init__(folder, port)
        self._program, self._settings = program, settings or ("--appendonly", "yes", "--appendfsync", "always")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        return [self._program, *where, *self._settings]

    def answers(self) -> bool:
        import redis

        try:
            with redis.Redis(port=self.port, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, or a skipped test where there is none to start."""
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    with _folder() as folder, held_port() as port:
        yield from _running(Postgres(folder, port, _postgres_programs()))


@contextmanager
def redis_or_valkey(*settings: str) -> Iterator[Redis]:
    """A Valkey or Redis server, or a skipped test where there is none to start."""
    pytest.importorskip("redis", reason="the extra redis is not installed")
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no valkey-server or redis-server on this machine")
    with _folder() as folder, held_port() as port:
        yield from _running(Redis(folder, port, program, *settings))


def _running(database: D) -> Iterator[D]:
    try:
        database.start()
        yield database
    finally:
        database.end()


def _postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    beside = shutil.which("initdb")
    if beside is not None:
        found.append(Path(beside).resolve())
    if not found:
        pytest.skip("there is no PostgreSQL server on this machine")
    return found[-1].parent


@contextmanager
def _folder() -> Iterator[Path]:
    """One that an unprivileged user can reach; pytest's own are root's."""
    folder = Path(tempfile.mkdtemp(prefix="garrison-db-"))
    try:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_nobody(words: list[str], log: int | None = None) -> subprocess.Popen[bytes]:
    """Start a program as an unprivileged user: PostgreSQL does not run as root."""
    user = "nobody" if os.geteuid() == 0 else None
    out = subprocess.PIPE if log is None else log
    return subprocess.Popen(
        words, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=_environment()
    )


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": "/nonexistent"}


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found
