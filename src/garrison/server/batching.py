"""From single requests to batches.

The requests that consecutive turns of the event loop bring form a batch: nothing waits for a window to pass. A batch that is cheap is
computed on the loop's own thread, which saves two thread switches; any other goes to the one worker thread, so that the loop
goes on answering. One batch a model is computed at a time; what comes meanwhile forms the next.

Invariants: an answer leaves only after its rows are charged; a request whose client has gone is dropped before it is computed;
the queue is bounded; whatever fails, every request gets an answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from garrison.errors import BudgetExhaustedError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.http_status import INTERNAL
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.server.budgets import ModelBudget

logger = logging.getLogger(__name__)

INLINE_SECONDS = 0.01
"""A batch that is expected to take longer is not computed on the event loop's thread."""
_FORGET = 1.05

Call = Callable[[Sequence[Ask]], list[Reply]]
Result = TypeVar("Result")


class Waiting:
    """A request in the queue. `rows` is what it may cost, in rows; `reply` is cancelled when its client has gone."""

    __slots__ = ("body", "caller", "json_bytes", "nonce", "reply", "rows", "sealed")

    def __init__(
        self, caller: str, body: bytes, json_bytes: int, nonce: str, rows: float, *, sealed: bool = False
    ) -> None:
        self.caller = caller
        self.body = body
        self.json_bytes = json_bytes
        self.nonce = nonce
        self.rows = rows
        self.sealed = sealed
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()


class Batcher:
    """The queue before one model. To be used from the event loop alone.

    Args:
        call: computes a batch; blocks.
        budget: what callers may ask of this model.
        worker: one thread, for what is not cheap.
        limits: `queue_requests`, `inline_rows` and `compute_rows` count here.
    """

    def __init__(self, call: Call, budget: ModelBudget, worker: Executor, limits: Limits) -> None:
        self._call = call
        self._budget = budget
        self._worker = worker
        self._limits = limits
        self._queue: deque[Waiting] = deque()
        self._scheduled = False
        self._seen = 0
        self._working = False
        self._row_seconds: float | None = None
        self._asides: deque[asyncio.Future[None]] = deque()
        self._aside_last = False

    @property
    def busy(self) -> bool:
        """Whether a new request will wait for longer than this turn of the loop."""
        return self._working

    def submit(self, request: Waiting) -> asyncio.Future[Reply]:
        """Put a request into the next batch.

        Raises:
            UnavailableError: too many are waiting.
        """
        if len(self._queue) >= self._limits.queue_requests:
            raise UnavailableError(f"{self._limits.queue_requests} requests are waiting already; try again")
        self._queue.append(request)
        self._schedule()
        return request.reply

    async def between(self, call: Callable[[], Result]) -> Result:
        """Run something on the worker thread while no batch is computed. Takes turns with batches, where there are both.

        Raises:
            UnavailableError: too many are waiting.
        """
        if len(self._asides) >= self._limits.evidence_requests:
            raise UnavailableError(f"{len(self._asides)} requests for evidence are waiting already; try again")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asides.append(turn)
        self._schedule()
        try:
            await turn
        except asyncio.CancelledError:
            self._leave(turn)
            raise
        try:
            running = asyncio.get_running_loop().run_in_executor(self._worker, call)
        except BaseException:
            self._rest()
            raise
        running.add_done_callback(lambda _: self._rest())
        return await asyncio.shield(running)  # the thread cannot be stopped, so the turn ends when it does

    def _leave(self, turn: asyncio.Future[None]) -> None:
        """Somebody who waited for a turn has gone."""
        if turn in self._asides:
            self._asides.remove(turn)
        elif turn.done() and not turn.cancelled():
            self._rest()

    def _give_turn(self) -> bool:
        """Whether somebody got a turn between two batches."""
        while self._asides and not (self._aside_last and self._queue):
            turn = self._asides.popleft()
            if not turn.done():
                self._working = self._aside_last = True
                turn.set_result(None)
                return True
        self._aside_last = False
        return False

    def _rest(self) -> None:
        self._working = False
        if self._queue or self._asides:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._working:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        if self._still_coming():
            asyncio.get_running_loop().call_soon(self._turn)
            return
        self._scheduled, self._seen = False, 0
        if self._give_turn():
            return
        batch = self._take()
        if not batch:
            if self._asides:
                self._schedule()
            return
        rows = sum(request.rows for request in batch)
        if rows <= self._limits.inline_rows and rows * (self._row_seconds or 0.0) <= INLINE_SECONDS:
            self._finish(batch, self._compute(batch, rows))
        else:
            self._working = True
            asyncio.get_running_loop().create_task(self._compute_aside(batch, rows))
        if self._queue or self._asides:
            self._schedule()

    def _still_coming(self) -> bool:
        """Whether this turn of the loop brought more requests; then the next one is looked at too, without waiting for it.

        The thread that reads HTTP is let in first. Where it shares a core with the loop, it is else kept out just when the
        clients of the last batch ask again, and the first of them gets a batch of its own, which costs as much as a full one.
        """
        waiting = len(self._queue)
        if waiting <= self._seen or waiting >= self._limits.inline_rows:
            return False
        self._seen = waiting
        os.sched_yield()
        return True

    async def _compute_aside(self, batch: list[Waiting], rows: float) -> None:
        replies = _failed(batch)
        try:
            replies = await asyncio.get_running_loop().run_in_executor(self._worker, self._compute, batch, rows)
        finally:
            self._finish(batch, replies)
            self._rest()

    def _take(self) -> list[Waiting]:
        """The oldest requests that make up one run of the runtime, at least one; without those whose client has gone."""
        batch: list[Waiting] = []
        rows = 0.0
        while self._queue and (not batch or rows + self._queue[0].rows <= self._limits.compute_rows):
            request = self._queue.popleft()
            if not request.reply.done():
                batch.append(request)
                rows += request.rows
        return batch

    def _compute(self, batch: list[Waiting], rows: float) -> list[Reply]:
        """Answer and charge a batch; never raises. On whichever thread it runs, it is the only one for this model."""
        start = time.perf_counter()
        try:
            replies = self._charge(batch, self._call([self._ask(request) for request in batch]))
        except (
            UnavailableError
        ) as error:  # the enclave has died or is being started anew; nothing was answered or charged
            return _failed(batch, error.code, str(error))
        except Exception:
            logger.exception("a batch of %d requests could not be answered or charged", len(batch))
            return _failed(batch)
        measured = (time.perf_counter() - start) / max(rows, 1.0)
        # The smallest of late: a busy machine makes single measurements too large, and never too small.
        self._row_seconds = measured if self._row_seconds is None else min(measured, self._row_seconds * _FORGET)
        return replies

    def _ask(self, request: Waiting) -> Ask:
        remaining = self._budget.remaining(request.caller)
        return Ask(request.caller, remaining, request.body, request.json_bytes, request.nonce, request.sealed)

    def _charge(self, batch: list[Waiting], replies: list[Reply]) -> list[Reply]:
        wants = [(request.caller, reply.outcome.rows) for request, reply in zip(batch, replies, strict=True)]
        granted = self._budget.charge(wants)
        return [reply if good else self._exhausted() for reply, good in zip(replies, granted, strict=True)]

    def _exhausted(self) -> Reply:
        """The budget was enough when the batch began, and was used up elsewhere meanwhile: the answer must not leave."""
        code, budget = BudgetExhaustedError.code, self._budget
        detail = f"the caller's budget of {budget.rows} rows ({budget.period}) does not cover this request"
        return Reply(code, detail, b"", -1, b"", Outcome(code=code, rows=0))

    @staticmethod
    def _finish(batch: list[Waiting], replies: list[Reply]) -> None:
        for request, reply in zip(batch, replies, strict=True):
            if not request.reply.done():
                request.reply.set_result(reply)


def _failed(batch: list[Waiting], code: str = INTERNAL, detail: str = "") -> list[Reply]:
    return [Reply(code, detail, b"", -1, b"", Outcome(code=code, rows=0)) for _ in batch]
