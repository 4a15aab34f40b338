"""A batcher before a model that notes the batches it gets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.stalls import PATIENT_SECONDS

from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.server.batching import Batcher
from garrison.server.model_budget import ModelBudget
from garrison.server.waiting import NEVER, Waiting

FREE = ModelBudget("m", 0, "", None)


class Echo:
    """Answers each ask with its own body and notes the batches it got.

    Args:
        seconds: what a batch takes at least.
        held: it computes until `go` is set.

    Attributes:
        began: it has got a batch.
    """

    def __init__(self, seconds: float = 0.0, *, broken: bool = False, held: bool = False) -> None:
        self.batches: list[list[bytes]] = []
        self.threads: list[int] = []
        self.seconds = seconds
        self.broken = broken
        self.began, self.go = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, asks: Sequence[Ask]) -> list[Reply]:
        self.batches.append([ask.body for ask in asks])
        self.threads.append(threading.get_ident())
        self.began.set()
        if not self.go.wait(PATIENT_SECONDS):
            raise TimeoutError("nobody has let the model go")
        time.sleep(self.seconds)
        if self.broken:
            raise RuntimeError("the model broke")
        return [Reply("", "", ask.body, -1, b"", Outcome("ok", 1)) for ask in asks]

    async def computing(self) -> None:
        """Wait until it has got a batch."""
        assert await asyncio.to_thread(self.began.wait, PATIENT_SECONDS)


class Clock:
    """In place of the module `time`: the queue's time passes when a test says so."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@contextmanager
def batcher(call: Echo, **limits: float) -> Iterator[Batcher]:
    with ThreadPoolExecutor(max_workers=1) as worker:
        queue = Batcher(call, FREE, worker, Limits(**limits))  # type: ignore[arg-type]
        for rows in (1, 2, 4, 8, 16):  # it has learned already that batches pay
            queue._size.note(rows, call.seconds or 1e-4)
        try:
            yield queue
        finally:
            call.go.set()


def waiting(k: int, rows: float = 1.0, caller: str = "alice", deadline: float = NEVER) -> Waiting:
    return Waiting(caller, str(k).encode(), -1, "", rows, deadline=deadline)
