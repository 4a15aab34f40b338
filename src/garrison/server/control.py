"""What a server and its front workers say to each other, over one connection a worker.

The server sends `Setup` once, with a `Line` for each model's enclave; the worker answers `Listening` or `Failed`. A `Line` is
followed by one byte that carries the descriptor of a pipe to the enclave.
"""

from __future__ import annotations

import os
import socket
import threading

import msgspec

from garrison.attest.evidence import Evidence
from garrison.config import Config
from garrison.enclave.host import ServiceCard
from garrison.enclave.talk import Failed
from garrison.errors import FrameError
from garrison.limits import MIB
from garrison.protocol.frames import Channel
from garrison.server.tally import Counted

MOST_BYTES = 64 * MIB
_MARK = b"\0"


class Setup(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    """What to serve.

    Attributes:
        enclaves: how many there are; 0 where each worker runs the models itself, then with:
        bundles: folders.
        trusted: public keys, PEM.
        signing_keys: one a bundle, so that all workers sign alike.
        counts: whether the server wants to know what the worker counts, every second.
    """

    config: Config
    enclaves: int = 0
    bundles: tuple[str, ...] = ()
    trusted: tuple[bytes, ...] = ()
    signing_keys: tuple[bytes, ...] = ()
    counts: bool = False


class Line(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A pipe to an enclave, in place of any other. A descriptor follows."""

    enclave: int
    card: ServiceCard


class Stop(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Finish what is in flight, and end."""


class Told(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The answer to a wish for evidence with this nonce."""

    nonce: bytes
    evidence: Evidence | None
    failed: Failed | None = None


class Listening(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The worker takes requests for these models."""

    cards: tuple[ServiceCard, ...]


class Lost(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A pipe to an enclave has ended. `key` is the public key of the enclave that it led to; `hung` says that it did not answer."""

    enclave: int
    key: bytes
    hung: bool


class Wish(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A wish for evidence of an enclave."""

    enclave: int
    nonce: bytes


ToFront = Setup | Line | Stop | Told
FromFront = Listening | Failed | Lost | Wish | Counted
TO_FRONT: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)
FROM_FRONT: msgspec.msgpack.Decoder[FromFront] = msgspec.msgpack.Decoder(FromFront)


class ServerEnd:
    """The server's end. Several threads may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._channel: Channel[ToFront, FromFront] = Channel(
            connection, FROM_FRONT, most_sent=MOST_BYTES, most_received=MOST_BYTES
        )

    def send(self, message: ToFront, descriptor: int | None = None) -> None:
        """Raises `FrameError` where the worker has gone."""
        with self._lock:
            self._channel.send(message)
            if descriptor is not None:
                try:
                    socket.send_fds(self._connection, [_MARK], [descriptor])
                except OSError as error:
                    raise FrameError(f"the front worker has gone: {error}") from error

    def receive(self) -> FromFront:
        """Raises `FrameError` where the worker has gone."""
        return self._channel.receive()

    def close(self) -> None:
        self._channel.close()


class FrontEnd:
    """A front worker's end. Several threads may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._channel: Channel[FromFront, ToFront] = Channel(
            connection, TO_FRONT, most_sent=MOST_BYTES, most_received=MOST_BYTES
        )

    def send(self, message: FromFront) -> None:
        """Raises `FrameError` where the server has gone."""
        with self._lock:
            self._channel.send(message)

    def receive(self) -> tuple[ToFront, socket.socket | None]:
        """The next message, and the pipe that comes with a `Line`.

        Raises:
            FrameError: the server has gone.
        """
        message = self._channel.receive()
        return message, self._descriptor() if isinstance(message, Line) else None

    def _descriptor(self) -> socket.socket:
        try:
            mark, descriptors, _, _ = socket.recv_fds(self._connection, len(_MARK), 1)
        except OSError as error:
            raise FrameError(f"the server has gone: {error}") from error
        if mark != _MARK or len(descriptors) != 1:
            raise FrameError("a pipe was announced, and none came")
        os.set_inheritable(descriptors[0], False)  # noqa: FBT003
        return socket.socket(fileno=descriptors[0])
