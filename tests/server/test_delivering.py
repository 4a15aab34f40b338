"""A request that cannot be handed to an enclave is refused alone; what fails for another reason fails as it did."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.server.batching import Batcher
from garrison.server.delivering import is_sendable
from garrison.server.model_budget import ModelBudget
from garrison.server.waiting import Waiting

FREE = ModelBudget("m", 0, "", None)
LONE = "\ud800"
"""Half of a pair: no UTF-8 says it."""


class Pipe:
    """Encodes all asks at once, as the pipe to an enclave does, and echoes them."""

    def __init__(self, *, broken: bool = False) -> None:
        self.sent: list[int] = []
        self.broken = broken

    def __call__(self, asks: Sequence[Ask]) -> list[Reply]:
        msgspec.msgpack.encode(list(asks))
        self.sent.append(len(asks))
        if self.broken:
            raise RuntimeError("the model broke")
        return [Reply("", "", ask.body, -1, b"", Outcome("ok", 1)) for ask in asks]


def replies(pipe: Pipe, works: Sequence[str], *, inline: bool) -> list[Reply]:
    async def main() -> list[Reply]:
        with ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(pipe, FREE, worker, Limits())
            for rows in (1, 2, 4, 8, 16) if inline else ():
                queue._size.note(rows, 1e-4)
            asked = (Waiting("alice", b"%d" % k, -1, "", 1.0, work=work) for k, work in enumerate(works))
            return list(await asyncio.gather(*(queue.submit(request) for request in asked)))

    return asyncio.run(main())


@pytest.mark.parametrize("inline", [True, False])
def test_what_cannot_be_sent_is_refused_alone(inline: bool) -> None:
    pipe = Pipe()
    found = replies(pipe, ["", LONE, "work", LONE], inline=inline)
    assert [reply.code for reply in found] == ["", "request.malformed", "", "request.malformed"]
    assert [reply.body for reply in found] == [b"0", b"", b"2", b""]
    assert pipe.sent == [2]


@pytest.mark.parametrize("inline", [True, False])
def test_all_of_a_batch_may_be_such(inline: bool) -> None:
    pipe = Pipe()
    assert {reply.code for reply in replies(pipe, [LONE, LONE], inline=inline)} == {"request.malformed"}
    assert pipe.sent == []


@pytest.mark.parametrize("inline", [True, False])
def test_the_control_another_failure_is_not_tried_again(inline: bool) -> None:
    pipe = Pipe(broken=True)
    assert {reply.code for reply in replies(pipe, ["", "work"], inline=inline)} == {"internal"}
    assert pipe.sent == [2]


def test_what_can_be_sent() -> None:
    assert is_sendable(Ask("alice", -1, b"body"))
    assert not is_sendable(Ask("alice", -1, b"body", work=LONE))
    assert not is_sendable(Ask("alice", 2**70, b"body"))
