"""Frames over one connection between two processes: four bytes of length, then one message in MessagePack.

Both sides bound the length before memory is taken for it. A frame that is too long, ends early or does not read as one of the
messages that are expected ends the connection: there is no way back into step with somebody who lies. Nothing but the types
named at the start can come out of a frame; no code travels.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Generic, TypeVar

import msgspec

from garrison.errors import FrameError, LimitError

LENGTH = struct.Struct(">I")
MOST_FRAME_BYTES = 2**32 - 1
_TIME = struct.Struct("@ll")  # struct timeval
_WANTED_BUFFER_BYTES = 1 << 20

Sent = TypeVar("Sent", bound=msgspec.Struct)
Received = TypeVar("Received")


def bound_times(connection: socket.socket, seconds: float) -> None:
    """Let the kernel end a read or a write that takes too long; cheaper than `settimeout`, which asks before each."""
    connection.settimeout(None)
    whole = int(seconds)
    time = _TIME.pack(whole, int((seconds - whole) * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, time)


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
    """

    def __init__(
        self,
        connection: socket.socket,
        received: msgspec.msgpack.Decoder[Received],
        *,
        most_sent: int,
        most_received: int,
    ) -> None:
        self._connection = connection
        self._decoder = received
        self._encoder = msgspec.msgpack.Encoder()
        self._most_sent = min(most_sent, MOST_FRAME_BYTES)
        self._most_received = min(most_received, MOST_FRAME_BYTES)

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
            self._connection.sendall(frame)
        except OSError as error:
            self.close()
            raise FrameError(f"the other side of the connection has gone: {error}") from error

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
        except OSError as error:
            self.close()
            raise FrameError(f"nothing comes over the connection: {error}") from error
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
        view, filled = memoryview(data), 0
        while filled < length:
            count = self._connection.recv_into(view[filled:])
            if not count:
                raise FrameError(f"the connection ended after {filled} of {length} bytes")
            filled += count
        return data
