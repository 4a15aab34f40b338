"""Frames over one connection between two processes: four bytes of length, then one message in MessagePack.

Both sides bound the length before memory is taken for it. A frame that is too long, ends early or does not read as one of the
messages that are expected ends the connection: there is no way back into step with somebody who lies, and none with somebody who sends a
byte now and then. Nothing but the types named at the start can come out of a frame; no code travels.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Generic, TypeVar

import msgspec

from garrison.errors import FrameError, LimitError

LENGTH = struct.Struct(">I")
MOST_FRAME_BYTES = 2**32 - 1
_TIME = struct.Struct("@ll")  # struct timeval
_WANTED_BUFFER_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18

Sent = TypeVar("Sent", bound=msgspec.Struct)
Received = TypeVar("Received")


class GoneError(FrameError):
    """The other side has ended the connection. It did not lie, and it was not late."""


def bound_times(connection: socket.socket, seconds: float) -> None:
    """Let the kernel end a read or a write that takes too long; cheaper than `settimeout`, which asks before each."""
    connection.settimeout(None)
    whole = int(seconds)
    packed = _TIME.pack(whole, int((seconds - whole) * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, packed)


def send_buffer_bytes(connection: socket.socket) -> int:
    """How much an idle connection takes before somebody reads: half of the buffer, as the kernel counts what it needs itself."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WANTED_BUFFER_BYTES)
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2


class Channel(Generic[Sent, Received]):
    """One end of a connection. Not for several threads at once.

    Args:
        connection: a connected stream socket; closed at the first frame that lies.
        received: decoder of the messages that the other side may send.
        most_sent, most_received: longest message, in bytes.
        seconds: how long a message may take once a part of it is there, or is sent; None for as long as each part comes in the time that
            `bound_times` gives. See `bound`.
    """

    def __init__(
        self,
        connection: socket.socket,
        received: msgspec.msgpack.Decoder[Received],
        *,
        most_sent: int,
        most_received: int,
        seconds: float | None = None,
    ) -> None:
        self._connection = connection
        self._decoder = received
        self._encoder = msgspec.msgpack.Encoder()
        self._most_sent = min(most_sent, MOST_FRAME_BYTES)
        self._most_received = min(most_received, MOST_FRAME_BYTES)
        self._seconds = float("inf") if seconds is None else seconds

    def bound(self, seconds: float) -> None:
        """Change how long a message may take: in silence, and from its first part to its last."""
        bound_times(self._connection, seconds)
        self._seconds = seconds

    def send(self, message: Sent) -> None:
        """Send one message.

        Raises:
            LimitError: it is longer than may be. Nothing was sent, and the connection is as it was.
            FrameError: the other side has gone, and the connection is closed.
        """
        frame = bytearray(LENGTH.size)
        self._encoder.encode_into(message, frame, LENGTH.size)
        length = len(frame) - LENGTH.size
        if length > self._most_sent:
            raise LimitError(f"a message of {length} bytes is longer than the {self._most_sent} that may be sent")
        LENGTH.pack_into(frame, 0, length)
        try:
            sent = self._connection.send(memoryview(frame)[:_PIECE_BYTES])
            if sent < len(frame):
                self._send_rest(memoryview(frame)[sent:])
        except (BlockingIOError, TimeoutError) as error:
            self.close()
            raise FrameError(f"the other side of the connection does not read: {error}") from error
        except OSError as error:
            self.close()
            raise GoneError(f"the other side of the connection has gone: {error}") from error
        except FrameError:
            self.close()
            raise

    def receive(self) -> Received:
        """The next message; waits for it.

        Raises:
            FrameError: the other side has gone or is late, or its frame lies. The connection is closed.
        """
        try:
            (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
            if length > self._most_received:
                raise FrameError(f"a frame announces {length} bytes; at most {self._most_received} are taken")
            return self._decoder.decode(self._exactly(length))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.close()
            raise FrameError("a frame holds none of the messages that may come") from error
        except (BlockingIOError, TimeoutError) as error:
            self.close()
            raise FrameError(f"nothing comes over the connection: {error}") from error
        except OSError as error:
            self.close()
            raise GoneError(f"nothing comes over the connection any more: {error}") from error
        except FrameError:
            self.close()
            raise

    def close(self) -> None:
        """Also wakes a thread that waits for a message."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        filled = self._connection.recv_into(data) if length else 0
        if filled < length:
            self._receive_rest(memoryview(data), filled)
        return data

    def _receive_rest(self, view: memoryview, filled: int) -> None:
        late = time.monotonic() + self._seconds
        count = filled
        while filled < len(view):
            if not count:
                raise GoneError(f"the connection ended after {filled} of {len(view)} bytes")
            count = self._connection.recv_into(view[filled:])
            filled += count
            if filled < len(view) and time.monotonic() > late:
                raise FrameError(f"after {self._seconds:g} s only {filled} of {len(view)} bytes had come")

    def _send_rest(self, rest: memoryview) -> None:
        late = time.monotonic() + self._seconds
        while rest:
            rest = rest[self._connection.send(rest[:_PIECE_BYTES]) :]
            if rest and time.monotonic() > late:
                raise FrameError(f"after {self._seconds:g} s {len(rest)} bytes had not been read")
