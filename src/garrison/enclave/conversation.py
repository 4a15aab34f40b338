"""The host's end of one pipe to an enclave's process: one message of ours, one answer, in turn."""

from __future__ import annotations

import os
import select
import socket
import threading
import weakref
from collections.abc import Callable, Sequence

from garrison.attest.evidence import Evidence
from garrison.enclave.talk import (
    FROM_WORKER,
    Answered,
    AskDrift,
    Attest,
    Attested,
    Clear,
    Cleared,
    DriftTold,
    Failed,
    FromHost,
    FromWorker,
    List,
    Listed,
    Resume,
    Resumed,
    Take,
    Taken,
    Witness,
    Witnessed,
    most_answer_bytes,
    most_call_bytes,
    parted,
    raised_again,
)
from garrison.errors import FrameError
from garrison.guard.drifting.report import DriftReport
from garrison.guard.watching.book import Alarm
from garrison.limits import Limits
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.frames import Channel, GoneError, send_buffer_bytes
from garrison.protocol.messages import Ask, Reply

_ASK_BYTES = 1024
"""What an ask takes beside its body, at most: short words and one number."""

Pipe = Channel[FromHost, FromWorker]


class Asked:
    """A batch that an enclave's process computes; see `garrison.enclave.host.Pending`."""

    __slots__ = ("_asks", "_conversation")

    def __init__(self, conversation: Conversation, asks: int) -> None:
        self._conversation = conversation
        self._asks = asks

    def wait(self, seconds: float) -> bool:
        return self._conversation.wait(seconds)

    def fileno(self) -> int:
        return self._conversation.fileno()

    def is_whole(self) -> bool:
        return self._conversation.is_whole()

    def result(self) -> list[Reply]:
        return self._conversation.replies(self._conversation.finish(), self._asks)


class Conversation:
    """Safe to use from several threads.

    Args:
        connection: the pipe.
        limits: of the service at its other end.
        seconds: most that one answer may take.
        broken: called when the pipe has ended, or what comes over it is late or lies; it cannot be used any more, and of
            the process at its other end see `is_at_fault`.
    """

    def __init__(
        self, connection: socket.socket, limits: Limits, seconds: float, broken: Callable[[FrameError], None]
    ) -> None:
        self._lock = threading.Lock()
        self._broken = broken
        self._pipe: Pipe = Channel(
            connection, FROM_WORKER, most_sent=most_call_bytes(limits), most_received=most_answer_bytes(limits)
        )
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        # Not the pipe itself: a loop would have it block no more. And not what is closed with the pipe: whoever watches could miss that.
        watched = os.dup(connection.fileno())
        weakref.finalize(self, os.close, watched)
        self._epoll = select.epoll()
        self._epoll.register(watched, select.EPOLLIN)
        self._at_once_bytes = send_buffer_bytes(connection)
        self.bound(seconds)

    def bound(self, seconds: float) -> None:
        """Change how long an answer may take."""
        self._pipe.bound(seconds)

    def ask(self, message: FromHost) -> FromWorker:
        """One message, one answer.

        Raises:
            FrameError: the process has died, is late, or sends nonsense.
            GarrisonError: what the process says went wrong.
        """
        with self._lock:
            self._send(message)
            return self._receive()

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        """A batch and its replies.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        with self._lock:
            self._send(*parted(asks))
            answer = self._receive()
        return self.replies(answer, len(asks))

    def attest(self, nonce: bytes) -> Evidence:
        """Fresh evidence.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        answer = self.ask(Attest(nonce))
        if not isinstance(answer, Attested):
            raise self._lies()
        return answer.evidence

    def resume(self, snapshot: bytes | None, key: bytes) -> None:
        """Hand in caller state; see `garrison.enclave.caller_state`.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        if not isinstance(self.ask(Resume(snapshot, key)), Resumed):
            raise self._lies()

    def take_snapshot(self) -> bytes | None:
        """A fresh snapshot of caller state; None where nothing has changed.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        answer = self.ask(Take())
        if not isinstance(answer, Taken):
            raise self._lies()
        return answer.snapshot

    def alarms(self) -> tuple[Alarm, ...]:
        """See `garrison.enclave.caller_state.CallerState.alarms`.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        answer = self.ask(List())
        if not isinstance(answer, Listed):
            raise self._lies()
        return answer.alarms

    def clear_alarm(self, caller: str) -> bool:
        """See `garrison.enclave.caller_state.CallerState.clear_alarm`.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        answer = self.ask(Clear(caller))
        if not isinstance(answer, Cleared):
            raise self._lies()
        return answer.known

    def witness(self, ledger: bytes, at: int, head: bytes, start: bytes = b"", bodies: bytes = b"") -> SignedCheckpoint:
        """See `garrison.enclave.witness.Witness.sign`.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        answer = self.ask(Witness(ledger, at, head, start, bodies))
        if not isinstance(answer, Witnessed):
            raise self._lies()
        return answer.signed

    def drift(self) -> DriftReport | None:
        """See `garrison.enclave.caller_state.CallerState.drift`.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        answer = self.ask(AskDrift())
        if not isinstance(answer, DriftTold):
            raise self._lies()
        return answer.report

    def begin(self, asks: Sequence[Ask]) -> Asked | None:
        """Send a batch; None where that might block, because the pipe is in use or the batch is too long to lie in it.

        Raises:
            FrameError: as `ask` does.
        """
        if sum(len(ask.body) + _ASK_BYTES for ask in asks) > self._at_once_bytes:
            return None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._send(*parted(asks))
        except BaseException:
            self._lock.release()
            raise
        return Asked(self, len(asks))

    def wait(self, seconds: float) -> bool:
        """Whether something is there to be read, or comes within that time."""
        return bool(self._poll.poll(seconds * 1000.0))

    def fileno(self) -> int:
        """See `garrison.enclave.host.Pending`."""
        return self._epoll.fileno()

    def is_whole(self) -> bool:
        """Whether `finish` would not wait."""
        return self._pipe.is_whole()

    def finish(self) -> FromWorker:
        """The answer to what `begin` sent.

        Raises:
            FrameError, GarrisonError: as `ask` does.
        """
        try:
            return self._receive()
        finally:
            self._lock.release()

    def replies(self, answer: FromWorker, asks: int) -> list[Reply]:
        """The replies in an answer. Others than were asked for might be another caller's, so that nothing more is believed then.

        Raises:
            FrameError: it holds others than were asked for.
        """
        if not isinstance(answer, Answered) or len(answer.replies) != asks:
            raise self._lies()
        return answer.replies

    def close(self) -> None:
        self._pipe.close()

    def _lies(self) -> FrameError:
        error = FrameError("the enclave's process did not answer what it was asked")
        self._broken(error)
        return error

    def _send(self, message: FromHost, behind: Sequence[bytes] = ()) -> None:
        try:
            self._pipe.send(message, behind)
        except FrameError as error:
            self._broken(error)
            raise

    def _receive(self) -> FromWorker:
        try:
            answer = self._pipe.receive()
        except FrameError as error:
            self._broken(error)
            raise
        if isinstance(answer, Failed):
            raise raised_again(answer)
        return answer


def is_at_fault(error: FrameError) -> bool:
    """Whether the process at the other end is late or lies, and must be ended; it has not just gone."""
    return not isinstance(error, GoneError)
