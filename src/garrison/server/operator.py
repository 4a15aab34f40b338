"""What the operator of a running server may ask it: a socket in the state folder, `STATE/operator.PID.sock`.

One line of JSON in, one line out, then the connection ends. Who may: the user that the server runs as, and root; the file's rights say so, and the kernel
is asked who is at the other end.

Invariants: nothing here answers the network; no line is longer than `MOST_BYTES`; one operator at a time, and none for longer than a few seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from garrison.bundle.manifest import parse_manifest
from garrison.enclave.host import Alarm, Drifting, DriftReport, Enclave, Watching
from garrison.errors import ConfigError, GarrisonError, UnavailableError
from garrison.server.ledger.ledger import Ledger

logger = logging.getLogger(__name__)

MOST_BYTES = 16 * 1024
_MOST_ANSWER = 64 * 1024 * 1024
_SECONDS = 5.0
_ADDRESS_BYTES = 108
"""Of `sun_path`, with the zero at its end; unix(7)."""
_PEER = struct.Struct("3i")


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator wants.

    Attributes:
        clear: forget what is known of this caller; "" to see the alarms.
        drift: see how far callers have drifted, in place of the alarms.
        model: of this model alone; "" for all.
    """

    clear: str = ""
    model: str = ""
    drift: bool = False


class ModelDrift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the callers of one model have drifted."""

    model: str
    version: int
    report: DriftReport


class ModelAlarms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Alarms of one model."""

    model: str
    version: int
    alarms: tuple[Alarm, ...]


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer.

    Attributes:
        models: that watch their callers.
        cleared: models that knew the caller.
        drift: of the models that look for drift.
        error: why there is no answer; "" where there is one.
    """

    models: tuple[ModelAlarms, ...] = ()
    cleared: tuple[str, ...] = ()
    drift: tuple[ModelDrift, ...] = ()
    error: str = ""


class OperatorSocket:
    """Answers operators, on a thread of its own, until closed.

    Args:
        folder: the state folder.
        enclaves: whose callers are watched.
        ledger: where what an operator does is written down before it is done; None for nowhere.
    """

    def __init__(self, folder: Path, enclaves: Sequence[Enclave], ledger: Ledger | None = None) -> None:
        self._enclaves = tuple(enclaves)
        self._ledger = ledger
        self._path = folder / f"operator.{os.getpid()}.sock"
        self._socket = socket.socket(socket.AF_UNIX)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        try:
            with _address(self._path) as address:
                self._socket.bind(address)
            self._path.chmod(0o600)
            self._socket.listen(4)
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._work, name="garrison-operator", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        self._thread.join(_SECONDS)

    def _work(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_SECONDS)
                user = _user_of(connection)
                if user in {0, os.geteuid()}:
                    connection.sendall(msgspec.json.encode(self._told(_line(connection, MOST_BYTES), user)) + b"\n")

    def _told(self, line: bytes, user: int) -> Told:
        try:
            wish = msgspec.json.decode(line, type=Wish)
            if wish.drift:
                return self._drift(wish.model)
            watched = [(n, v, e) for n, v, e in watching(self._enclaves) if wish.model in {"", n}]
            if not watched:
                return Told(error=f"no model here watches its callers{f', named {wish.model!r}' if wish.model else ''}")
            if not wish.clear:
                return Told(models=tuple(ModelAlarms(n, v, tuple(e.alarms())) for n, v, e in watched))
            self._write_down("alarms.clear", user, wish, [f"{n}, version {v}" for n, v, _ in watched])
            return Told(cleared=tuple(f"{n}, version {v}" for n, v, e in watched if e.clear_alarm(wish.clear)))
        except (GarrisonError, msgspec.DecodeError, UnicodeDecodeError) as error:
            return Told(error=str(error))
        except Exception:
            logger.exception("an operator's wish could not be answered")
            return Told(error="the server failed on this; its log says why")

    def _write_down(self, act: str, user: int, wish: Wish, models: Sequence[str]) -> None:
        """Raises `UnavailableError` where it cannot be; then it is not done either."""
        if self._ledger is not None:
            self._ledger.act(act, user, caller=wish.clear, models="; ".join(models))

    def _drift(self, model: str) -> Told:
        found = [(n, v, e.drift()) for n, v, e in drifting(self._enclaves) if model in {"", n}]
        if not found:
            return Told(error=f"no model here looks for drift{f', named {model!r}' if model else ''}")
        return Told(drift=tuple(ModelDrift(n, v, report) for n, v, report in found if report is not None))


def open_operator(folder: Path, enclaves: Sequence[Enclave], ledger: Ledger | None = None) -> OperatorSocket | None:
    """The socket of a server some of whose models watch their callers; None where none does, or it cannot be made."""
    if not any(_is_watched(enclave) for enclave in enclaves) and not any(drifting(enclaves)):
        return None
    try:
        return OperatorSocket(folder, enclaves, ledger)
    except OSError as error:
        logger.warning("alarms cannot be seen or cleared: no socket in %s: %s", folder, error)
        return None


def watching(enclaves: Sequence[Enclave]) -> Iterator[tuple[str, int, Watching]]:
    """Name, version and enclave of each model that watches its callers."""
    for enclave in enclaves:
        if isinstance(enclave, Watching) and _is_watched(enclave):
            manifest = parse_manifest(enclave.card.manifest_json)
            yield manifest.name, manifest.version, enclave


def drifting(enclaves: Sequence[Enclave]) -> Iterator[tuple[str, int, Drifting]]:
    """Name, version and enclave of each model that looks for drift."""
    for enclave in enclaves:
        if isinstance(enclave, Drifting) and any(spec.name == "drift" for spec in enclave.card.chain):
            manifest = parse_manifest(enclave.card.manifest_json)
            yield manifest.name, manifest.version, enclave


def ask_servers(folder: Path, wish: Wish) -> list[Told]:
    """The answers of all servers that run with this state folder.

    Raises:
        UnavailableError: none runs, or one does not answer.
        ConfigError: one of them says what is wrong.
    """
    found = [told for path in sorted(folder.glob("operator.*.sock")) if (told := _ask(path, wish)) is not None]
    if not found:
        raise UnavailableError(
            f"no server that watches its callers, or looks for drift, runs with the state folder {folder} (--state)"
        )
    errors = [told.error for told in found if told.error]
    if len(errors) == len(found):
        raise ConfigError(errors[0])
    return [told for told in found if not told.error]


def _ask(path: Path, wish: Wish) -> Told | None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2 * _SECONDS)
        try:
            with _address(path) as address:
                connection.connect(address)
        except (ConnectionRefusedError, FileNotFoundError) as error:  # a server that was killed, or has just ended
            if isinstance(error, FileNotFoundError) and path.exists():
                raise UnavailableError(f"{path} cannot be reached: a path of this length needs /proc") from error
            return None
        except OSError as error:
            raise UnavailableError(f"{path}: {error.strerror}: ask as the user that the server runs as") from error
        try:
            connection.sendall(msgspec.json.encode(wish) + b"\n")
            return msgspec.json.decode(_line(connection, _MOST_ANSWER), type=Told)
        except (OSError, msgspec.DecodeError) as error:
            raise UnavailableError(f"{path}: the server does not answer") from error


def _is_watched(enclave: Enclave) -> bool:
    return any(spec.name == "watch" for spec in enclave.card.chain)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A socket's name that the kernel takes: it bounds the bytes of an address, not those of a path."""
    if len(os.fsencode(path)) < _ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _user_of(connection: socket.socket) -> int:
    """Number of the user at the other end, as the kernel says."""
    _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(user)


def _line(connection: socket.socket, most: int) -> bytes:
    """Up to the end of a line; raises `OSError` where none comes."""
    parts: list[bytes] = []
    size = 0
    while not (parts and parts[-1].endswith(b"\n")):
        part = connection.recv(65_536)
        size += len(part)
        if not part or size > most:
            raise ConnectionError("no whole line came")
        parts.append(part)
    return b"".join(parts)
