"""The inner side of several pipes: one of the host that started this enclave, and one of each front worker.

Requests that wait on several pipes at once are answered as one batch. Invariants: a pipe whose frame lies or stops in the middle is
closed and harms no other; when the first pipe ends, the host has gone, and the program ends.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from garrison.enclave.talk import (
    FROM_HOST,
    Answered,
    Call,
    Failed,
    FromHost,
    FromWorker,
    failure,
    most_answer_bytes,
    most_call_bytes,
    whole,
)
from garrison.errors import FrameError, GarrisonError, LimitError
from garrison.limits import Limits
from garrison.protocol.frames import Channel, bound_times
from garrison.protocol.messages import Ask, Reply

LINE_SECONDS = 5.0
"""Who has begun a frame must have sent it by then, and who is answered must have read it: the others wait meanwhile."""

Pipe = Channel[FromWorker, FromHost]


class Answering(Protocol):
    """What answers: a confined service."""

    def answer(self, message: FromHost) -> FromWorker: ...

    def answer_batch(self, asks: Sequence[Ask]) -> list[Reply]: ...


class Lines:
    """All pipes. To be made before the process is confined.

    Args:
        first: the host's.
        others: the front workers'; may be none.
    """

    def __init__(self, first: socket.socket, others: Sequence[socket.socket]) -> None:
        self._first = first
        self._others = tuple(others)
        self._ready = select.epoll() if others else None
        for line in self._others:
            bound_times(line, LINE_SECONDS)  # here: when confined, no socket can be set any more
        if self._ready is not None:
            for line in (first, *others):
                self._ready.register(line, select.EPOLLIN)

    def serve(self, service: Answering, limits: Limits) -> None:
        """Answer until the host has gone.

        Raises:
            FrameError: it has.
        """
        sizes = {"most_sent": most_answer_bytes(limits), "most_received": most_call_bytes(limits)}
        first: Pipe = Channel(self._first, FROM_HOST, **sizes)
        if self._ready is None:
            while True:
                _send(first, _answered(service.answer, _received(first)))
        pipes: dict[int, Pipe] = {
            line.fileno(): Channel(line, FROM_HOST, **sizes, seconds=LINE_SECONDS) for line in self._others
        }
        pipes[self._first.fileno()] = first
        while True:
            messages = self._receive(self._ready.poll(), pipes, first)
            for pipe, answer in _answers(service, messages):
                with contextlib.suppress(*(() if pipe is first else (FrameError,))):
                    _send(pipe, answer)

    @staticmethod
    def _receive(ready: list[tuple[int, int]], pipes: dict[int, Pipe], first: Pipe) -> list[tuple[Pipe, FromHost]]:
        """One message of each pipe on which there is one; pipes that have ended are forgotten."""
        messages: list[tuple[Pipe, FromHost]] = []
        for descriptor, _ in ready:
            pipe = pipes[descriptor]
            try:
                messages.append((pipe, _received(pipe)))
            except FrameError:
                if pipe is first:
                    raise
                del pipes[descriptor]
        return messages


def _received(pipe: Pipe) -> FromHost:
    """The next message, with what stands behind it.

    Raises:
        FrameError: the other side has gone, or lies; the pipe is closed.
    """
    message = pipe.receive()
    if not isinstance(message, Call):
        return message
    try:
        return whole(message, pipe.take)
    except FrameError:
        pipe.close()
        raise


def _answers(service: Answering, messages: Sequence[tuple[Pipe, FromHost]]) -> list[tuple[Pipe, FromWorker]]:
    calls = [(pipe, message) for pipe, message in messages if isinstance(message, Call)]
    rest = [(pipe, message) for pipe, message in messages if not isinstance(message, Call)]
    found = _batch(service, calls)
    for pipe, message in rest:
        try:
            found.append((pipe, _answered(service.answer, message)))
        except FrameError as error:  # a second start: whoever sends it is told, and nothing changes
            found.append((pipe, failure(error)))
    return found


def _batch(service: Answering, calls: Sequence[tuple[Pipe, Call]]) -> list[tuple[Pipe, FromWorker]]:
    """Several pipes' requests as one batch."""
    if not calls:
        return []
    try:
        replies = service.answer_batch([ask for _, call in calls for ask in call.asks])
    except GarrisonError as error:
        return [(pipe, failure(error)) for pipe, _ in calls]
    found: list[tuple[Pipe, FromWorker]] = []
    start = 0
    for pipe, call in calls:
        found.append((pipe, Answered(replies[start : start + len(call.asks)])))
        start += len(call.asks)
    return found


def _answered(answer: Callable[[FromHost], FromWorker], message: FromHost) -> FromWorker:
    try:
        return answer(message)
    except FrameError:
        raise
    except GarrisonError as error:
        return failure(error)


def _send(pipe: Pipe, answer: FromWorker) -> None:
    try:
        pipe.send(answer)
    except LimitError as error:
        told: Failed = failure(error)
        pipe.send(told)
