"""What is done on the event loop for the ledger, and what on the writer's thread."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from garrison.protocol.messages import Outcome, Reply
from garrison.protocol.statement import StatementWriter, sign_encoded
from garrison.server.ledger import recorder
from garrison.server.ledger.recorder import Recorder
from garrison.server.ledger.records import Answers, Chain, Entry, read_body
from garrison.server.waiting import Waiting

BODY, ANSWER, NONCE = b"asked", b"told", "n" * 43
ENTRY = Entry("alice", 1, "ok", hashlib.sha256(BODY).hexdigest(), hashlib.sha256(ANSWER).hexdigest(), NONCE)


class Waits:
    """A writer that writes when it is told to."""

    def __init__(self) -> None:
        self.made: list[Callable[[Chain], bytes]] = []

    def now(self) -> float:
        return 12.5

    def put(self, make: Callable[[Chain], bytes], done: Callable[[bool], None], requests: int) -> None:
        assert requests == 2
        self.made.append(make)


def proof() -> bytes:
    statement = StatementWriter("ab" * 32, "cd" * 32).write(BODY, ANSWER, 1, NONCE)
    return sign_encoded([statement], lambda _: bytes(64))[0]


def flushed(proofs: list[bytes], caller: str = "alice") -> Callable[[Chain], bytes]:
    """What a batch of requests leaves to the writer's thread."""
    writer: Any = Waits()

    async def flush() -> None:
        batch = [Waiting(caller, BODY, -1, NONCE, 1.0) for _ in proofs]
        replies = [Reply("", "", ANSWER, -1, one, Outcome("ok", 1)) for one in proofs]
        held = Recorder(writer, "mlp", 1)
        held.record(batch, replies, lambda *_: None, lambda *_: None)
        held.flush()

    asyncio.run(flush())
    (make,) = writer.made
    return make  # type: ignore[no-any-return]


@pytest.mark.parametrize(("signed", "on_loop"), [((True, True), True), ((True, False), False)])
def test_bodies_are_hashed_on_the_writers_thread_and_signed_answers_are_written_on_the_loops(
    monkeypatch: pytest.MonkeyPatch, signed: tuple[bool, bool], *, on_loop: bool
) -> None:
    seen: list[threading.Thread] = []
    digests = recorder._digests

    def watched(request: Waiting, reply: Reply) -> tuple[str, str]:
        seen.append(threading.current_thread())
        return digests(request, reply)

    monkeypatch.setattr(recorder, "_digests", watched)
    make = flushed([proof() if one else b"" for one in signed])
    lines: list[bytes] = []
    thread = threading.Thread(target=lambda: lines.append(make(Chain(3))))
    thread.start()
    thread.join()
    assert seen == [threading.current_thread() if on_loop else thread] * 2
    record = read_body(Chain(3).follow(lines[0][:-1]))
    assert record == Answers(3, 12.5, "mlp", 1, (ENTRY, ENTRY))
    assert b'"code"' not in lines[0]


def test_what_cannot_be_written_fails_on_the_writers_thread_which_tells_of_it() -> None:
    make = flushed([proof(), proof()], caller="\ud800")
    with pytest.raises(ValueError, match="surrogate"):
        make(Chain())
