"""Many front workers' pipes into one enclave: none harms another, and the host's own ends it."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec
import pytest
from tests.stalls import PATIENT_SECONDS

from garrison.enclave import lines as lines_module
from garrison.enclave.conversation import Conversation
from garrison.enclave.lines import Lines
from garrison.enclave.talk import LONG_BYTES, Answered, Attest, Call, FromHost, FromWorker, Start
from garrison.errors import FrameError, IsolationError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply

LIMITS = Limits(queue_bytes=1 << 20, queue_requests=8)


class Echo:
    """Answers each ask with its own body, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def answer_batch(self, asks: Sequence[Ask]) -> list[Reply]:
        self.batches.append(len(asks))
        self.free.wait(PATIENT_SECONDS)
        return [Reply("", "", ask.body, -1, b"", Outcome("ok", 1)) for ask in asks]

    def answer(self, message: FromHost) -> FromWorker:
        match message:
            case Call(asks):
                return Answered(self.answer_batch(asks))
            case Attest():
                raise IsolationError("the hardware does not answer")
            case _:
                raise FrameError("twice")


class Inside:
    """The inner side on a thread, and our ends of its pipes."""

    def __init__(self, count: int) -> None:
        self.echo = Echo()
        pairs = [socket.socketpair() for _ in range(1 + count)]
        self.ends = [ours for ours, _ in pairs]
        self.theirs = [theirs for _, theirs in pairs]
        first, *others = self.theirs
        self.inner = Lines(first, others)
        self.ended = threading.Event()
        self.lost: list[int] = []
        self.talks = [self._talk(k) for k in range(len(self.ends))]
        threading.Thread(target=self._run, daemon=True).start()

    def _talk(self, k: int) -> Conversation:
        return Conversation(self.ends[k], LIMITS, PATIENT_SECONDS, lambda _: self.lost.append(k))

    def _run(self) -> None:
        with suppress(FrameError):
            self.inner.serve(self.echo, LIMITS)
        self.ended.set()

    def ask(self, k: int, *bodies: bytes) -> list[bytes]:
        return [reply.body for reply in self.talks[k].call(call(*bodies).asks)]


def call(*bodies: bytes) -> Call:
    return Call([Ask("caller", -1, body) for body in bodies])


@contextmanager
def inside(count: int) -> Iterator[Inside]:
    made = Inside(count)
    try:
        yield made
    finally:
        for talk in made.talks:
            talk.close()
        assert made.ended.wait(PATIENT_SECONDS)
        for end in made.theirs:
            end.close()
        if made.inner._ready is not None:
            made.inner._ready.close()


@pytest.mark.parametrize("count", [0, 3])
def test_each_pipe_gets_its_own_answers(count: int) -> None:
    with inside(count) as made:
        for k in range(1 + count):
            assert made.ask(k, b"a%d" % k, b"b") == [b"a%d" % k, b"b"]
            with pytest.raises(IsolationError, match="does not answer"):
                made.talks[k].ask(Attest(b"n" * 32))
            assert made.ask(k) == []


@pytest.mark.parametrize("count", [0, 2])
def test_long_bodies_arrive_whole_and_in_order(count: int) -> None:
    with inside(count) as made:
        bodies = [bytes([k]) * (LONG_BYTES * k) for k in range(5)]
        for k in range(1 + count):
            assert made.ask(k, *bodies, b"short") == [*bodies, b"short"]


def test_a_front_worker_that_lies_about_a_long_body_harms_no_other() -> None:
    with inside(2) as made:
        made.talks[1]._pipe.send(Call([Ask("caller", -1, b"")], {7: 4}), [b"lies"])
        assert made.ask(2, b"x") == [b"x"]
        with pytest.raises(FrameError):
            made.ask(1, b"x")


def test_what_waits_on_several_pipes_is_one_batch() -> None:
    with inside(3) as made:
        made.echo.free.clear()
        first = made.talks[0].begin(call(b"first").asks)
        while not made.echo.batches:
            time.sleep(0.001)
        others = [made.talks[k].begin(call(b"%d" % k, b"x").asks) for k in (1, 2, 3)]
        assert first is not None
        assert not first.wait(0.05)
        made.echo.free.set()
        assert [reply.body for reply in first.result()] == [b"first"]
        for k, asked in zip((1, 2, 3), others, strict=True):
            assert asked is not None
            assert [reply.body for reply in asked.result()] == [b"%d" % k, b"x"]
        assert made.echo.batches == [1, 6]


@pytest.mark.parametrize(
    "lie",
    [
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
        struct.pack(">I", 100) + b"half",
        b"",
    ],
    ids=["too long", "nonsense", "ends early", "goes"],
)
def test_a_pipe_that_lies_or_ends_harms_no_other(lie: bytes) -> None:
    with inside(2) as made:
        made.ends[1].sendall(lie)
        made.ends[1].shutdown(socket.SHUT_WR)
        assert made.ask(2, b"x") == [b"x"]
        assert made.ask(0, b"x") == [b"x"]
        with pytest.raises(FrameError):
            made.ask(1, b"x")
        assert made.lost == [1]


def test_a_pipe_that_stops_in_the_middle_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LINE_SECONDS", 0.2)
    with inside(2) as made:
        made.ends[1].sendall(struct.pack(">I", 100) + b"half")
        time.sleep(0.05)
        start = time.monotonic()
        assert made.ask(2, b"x") == [b"x"]
        assert time.monotonic() - start < PATIENT_SECONDS / 2
        assert made.ends[1].recv(1) == b""


def test_who_sends_bodies_a_byte_now_and_then_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: their time is that of one message."""
    monkeypatch.setattr(lines_module, "LINE_SECONDS", 0.2)
    asks, went_on = 200, threading.Event()
    with inside(2) as made:
        message = msgspec.msgpack.encode(Call([Ask("c", -1, b"")] * asks, dict.fromkeys(range(asks), 2)))

        def drip() -> None:
            made.ends[1].sendall(struct.pack(">I", len(message)) + message)
            with suppress(OSError):
                for _ in range(2 * asks):
                    made.ends[1].send(b"x")
                    time.sleep(0.1)
                went_on.set()

        dripping = threading.Thread(target=drip)
        dripping.start()
        time.sleep(0.05)
        start = time.monotonic()
        assert made.ask(2, b"x") == [b"x"]
        assert time.monotonic() - start < PATIENT_SECONDS
        dripping.join()
        assert not went_on.is_set()


def test_a_pipe_that_is_closed_here_is_noticed_by_who_watches_it() -> None:
    with inside(1) as made:
        made.echo.free.clear()
        asked = made.talks[1].begin(call(b"a").asks)
        assert asked is not None
        assert asked.fileno() != made.ends[1].fileno()  # which a loop would have block no more
        watching = select.poll()
        watching.register(asked.fileno(), select.POLLIN)
        assert not watching.poll(0)
        made.talks[1].close()
        assert watching.poll(PATIENT_SECONDS * 1000)
        assert asked.is_whole()  # none will come
        made.echo.free.set()


def test_who_does_not_read_his_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LINE_SECONDS", 0.2)
    with inside(2) as made:
        big = b"x" * (1 << 20)
        sender = threading.Thread(target=lambda: made.talks[1]._pipe.send(call(big)))
        sender.start()
        sender.join()
        start = time.monotonic()
        assert made.ask(2, b"x") == [b"x"]
        assert time.monotonic() - start < PATIENT_SECONDS / 2


def test_a_front_worker_cannot_start_an_enclave() -> None:
    start = Start(bundle="/", trusted=(), key=None, tightened={}, limits=LIMITS, parameter_memory=None, user=1)
    with inside(1) as made:
        with pytest.raises(UnavailableError, match="twice"):
            made.talks[1].ask(start)
        assert made.ask(1, b"x") == [b"x"]


def test_it_ends_with_the_host() -> None:
    with inside(2) as made:
        made.talks[0].close()
        assert made.ended.wait(PATIENT_SECONDS)


def test_a_pipe_in_use_takes_no_second_batch_and_a_long_one_is_for_another_thread() -> None:
    with inside(1) as made:
        made.echo.free.clear()
        asked = made.talks[1].begin(call(b"a").asks)
        assert asked is not None
        assert made.talks[1].begin(call(b"b").asks) is None
        made.echo.free.set()
        assert len(asked.result()) == 1
        assert made.talks[1].begin(call(bytes(made.talks[1]._at_once_bytes)).asks) is None
        assert made.ask(1, b"x" * (1 << 19)) == [b"x" * (1 << 19)]
