"""Frames over one connection between two processes: four bytes of length, then one message in MessagePack.

Long bytes may stand behind a message as they are, and are copied by nobody but the system then; the message says how long they are. Both sides bound
the length before memory is taken for it. A frame that is too long, ends early or does not read as one of the
messages that are expected ends the connection: there is no way back into step with somebody who lies, and none with somebody who sends a
byte now and then. Nothing but the types named at the start can come out of a frame; no code travels.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import msgspec

from garrison.errors import FrameError, LimitError

LENGTH = struct.Struct(">I")
MOST_FRAME_BYTES = 2**32 - 1
_TIME = struct.Struct("@ll")  # struct timeval
_WANTED_BUFFER_BYTES, _WANTED_ELSEWHERE_BYTES = 1 << 22, 1 << 20
"""Of a pipe on this machine; of any other connection, which may not hold as much as the system says."""
_PIECE_BYTES = 1 << 18
_GLANCE_BYTES = 1 << 16
"""So much is asked for of a message of which nothing is known yet, where it may not be waited for: mostly that is all of it, with one call of the system."""

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
    wanted = _WANTED_BUFFER_BYTES if connection.family == socket.AF_UNIX else _WANTED_ELSEWHERE_BYTES
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted)
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2


class Channel(Generic[Sent, Received]):
    """One end of a connection. Not for several threads at once.

    Args:
        connection: a connected stream socket; closed at the first frame that lies.
        received: decoder of the messages that the other side may send.
        most_sent, most_received: longest message, in bytes.
        seconds: how long a message may take, with what stands behind it, once a part of it is there, or is sent; None for as long as each part comes in the time that
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
        # Else the kernel would bound each silence alone, and who sends a byte now and then would keep one call for ever.
        self._at_once = socket.MSG_WAITALL if connection.family == socket.AF_UNIX else 0
        self._left, self._late = 0, float("inf")
        self._taken = b""

    def bound(self, seconds: float) -> None:
        """Change how long a message may take: in silence, and from its first part to its last."""
        bound_times(self._connection, seconds)
        self._seconds = seconds

    def send(self, message: Sent, behind: Sequence[bytes] = ()) -> None:
        """Send one message.

        Args:
            behind: what follows it. The message says how many bytes that is, for the other side to `take`.

        Raises:
            LimitError: it is longer than may be. Nothing was sent, and the connection is as it was.
            FrameError: the other side has gone, and the connection is closed.
        """
        frame = bytearray(LENGTH.size)
        self._encoder.encode_into(message, frame, LENGTH.size)
        length = len(frame) - LENGTH.size
        whole = length + sum(map(len, behind))
        if whole > self._most_sent:
            raise LimitError(f"a message of {whole} bytes is longer than the {self._most_sent} that may be sent")
        LENGTH.pack_into(frame, 0, length)
        try:
            if behind or len(frame) > _PIECE_BYTES:
                parts: tuple[bytes | bytearray, ...] = (frame, *behind)
                self._send_pieces(deque(memoryview(part) for part in parts))
            else:
                sent = self._connection.send(frame)
                if sent < len(frame):
                    self._send_pieces(deque([memoryview(frame)[sent:]]))
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
        self._late = time.monotonic() + self._seconds
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        try:
            if length > self._most_received:
                raise FrameError(f"a frame announces {length} bytes; at most {self._most_received} are taken")
            self._left = self._most_received - length
            return self._decoder.decode(self._exactly(length))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.close()
            raise FrameError("a frame holds none of the messages that may come") from error
        except FrameError:
            self.close()
            raise

    def is_whole(self) -> bool:
        """Whether `receive` would not wait: the next message is there to its last byte, or none will come. What is there is taken, and kept for `receive`.

        Of a long message, whose copying would hold up who asks, it says no.
        """
        try:
            while (missing := self._missing()) > 0:
                if missing > _PIECE_BYTES:
                    return False
                data = self._connection.recv(missing, socket.MSG_DONTWAIT)
                if not data:
                    break
                self._taken += data
        except BlockingIOError:
            return False
        except OSError:
            pass  # `receive` will tell
        return True

    def take(self, length: int) -> bytes:
        """What stands behind the message that came last: the next so many bytes of it.

        Raises:
            FrameError: as `receive` does; also where it would be longer, with its message, than a message may be.
        """
        if not 0 <= length <= self._left:
            self.close()
            raise FrameError(f"a frame announces {length} bytes behind it; at most {self._left} are taken")
        self._left -= length
        return self._exactly(length)

    def close(self) -> None:
        """Also wakes a thread that waits for a message."""
        self._taken = b""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _missing(self) -> int:
        """How many bytes of the next message are yet to be taken; `_GLANCE_BYTES` where that is not known, none of one that will not be taken."""
        taken = self._taken  # looked at once: another thread may close
        if len(taken) < LENGTH.size:
            return _GLANCE_BYTES
        (length,) = LENGTH.unpack_from(taken)
        return LENGTH.size + int(length) - len(taken) if length <= self._most_received else 0

    def _exactly(self, length: int) -> bytes:
        try:
            # All of it in one call, mostly: into memory that nobody has to clear first, or to copy from.
            if self._taken:
                data, self._taken = self._taken[:length], self._taken[length:]
            else:
                data = self._connection.recv(length, self._at_once) if length else b""
            return data if len(data) == length else self._with_rest(data, length)
        except (BlockingIOError, TimeoutError) as error:
            self.close()
            raise FrameError(f"nothing comes over the connection: {error}") from error
        except OSError as error:
            self.close()
            raise GoneError(f"nothing comes over the connection any more: {error}") from error
        except FrameError:
            self.close()
            raise

    def _with_rest(self, data: bytes, length: int) -> bytes:
        parts, filled = [data], len(data)
        while filled < length:
            if not parts[-1]:
                raise GoneError(f"the connection ended after {filled} of {length} bytes")
            if time.monotonic() > self._late:
                raise FrameError(f"after {self._seconds:g} s only {filled} of {length} bytes had come")
            parts.append(self._connection.recv(length - filled, self._at_once))
            filled += len(parts[-1])
        return b"".join(parts)

    def _send_pieces(self, rest: deque[memoryview]) -> None:
        late = time.monotonic() + self._seconds
        while rest:
            one = len(rest) == 1  # a confined process may send one part, and not several
            sent = self._connection.send(rest[0][:_PIECE_BYTES]) if one else self._connection.sendmsg(_piece(rest))
            while rest and sent >= len(rest[0]):
                sent -= len(rest.popleft())
            if rest:
                rest[0] = rest[0][sent:]
                if time.monotonic() > late:
                    raise FrameError(f"after {self._seconds:g} s {sum(map(len, rest))} bytes had not been read")


def _piece(parts: Iterable[memoryview]) -> list[memoryview]:
    """The beginning, at most `_PIECE_BYTES` of it."""
    found: list[memoryview] = []
    room = _PIECE_BYTES
    for part in parts:
        found.append(part[:room])
        room -= len(found[-1])
        if not room:
            break
    return found
