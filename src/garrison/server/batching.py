"""From single requests to batches.

The requests that consecutive turns of the event loop bring form a batch: nothing waits for a window to pass, and a request that nobody can
join is answered before the loop's turn ends. A batch that is cheap is
computed on the loop's own thread, which saves two thread switches. Any other is sent to the enclave's process, whose answer the loop awaits as it awaits its
clients (`garrison.server.arrival`); where the model is in this process, or the pipe cannot take the batch now, it goes to the worker's threads, so that the
loop goes on answering. One batch a model is computed at a time; what comes meanwhile forms the next. Callers take turns
(`garrison.server.waiting`), and a batch is no larger than pays (`garrison.server.batch_size`).

Invariants: an answer leaves only after its rows are charged, and where a ledger is kept, after its entry is on the disk; a request whose client has
gone, or whose deadline has passed, is dropped before it is computed, and costs nothing; the queue is bounded, in number and in time; the loop waits for no disk, no lock, and for an enclave
no longer than `INLINE_SECONDS`; whatever fails, every request gets an answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from garrison.enclave.host import Begin
from garrison.errors import BudgetExhaustedError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.server.arrival import THREAD_SECONDS, when_readable
from garrison.server.batch_size import CHEAP_SECONDS, BatchSize
from garrison.server.delivering import failed, failure, finish, hold_back, unsendable
from garrison.server.job import Job, summed
from garrison.server.ledger.recorder import Recorder
from garrison.server.model_budget import ModelBudget
from garrison.server.tally import ModelCount
from garrison.server.waiting import FairQueue, Turns, Waiting

logger = logging.getLogger(__name__)

INLINE_SECONDS = CHEAP_SECONDS
"""A batch that is expected to take longer is not computed on the event loop's thread."""

_END_SECONDS = 0.01

LOOKS = 2
"""So many turns of the loop that bring nothing new, and nobody is looked out for any more."""
LOOK_SECONDS = 0.001
"""And for no longer than this, whatever they bring."""

Call = Callable[[Sequence[Ask]], list[Reply]]
Result = TypeVar("Result")
_NO_TIME = "the model had no time for this request within the time that its client waits; try again"


class Batcher:
    """The queue before one model. To be used from the event loop alone.

    Args:
        call: computes a batch; blocks.
        budget: what callers may ask of this model.
        worker: threads, for what is not cheap.
        limits: `queue_requests`, `queue_seconds`, `inline_rows` and `compute_rows` count here.
        begin: begins to compute a batch elsewhere; where it is left out, `call` keeps its thread busy.
        recorder: writes down what is answered; None where no ledger is kept.

    Attributes:
        count: of what was answered, for metrics.
    """

    def __init__(
        self,
        call: Call,
        budget: ModelBudget,
        worker: Executor,
        limits: Limits,
        begin: Begin | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._call = call
        self._begin = begin
        self._recorder = recorder
        self._budget = budget
        self._worker = worker
        self._limits = limits
        self._queue = FairQueue(limits.queue_requests)
        self._size = BatchSize()
        self.count = ModelCount()
        self._scheduled = False
        self._announced = self._seen = self._expected = self._looks = 0
        self._look_until = 0.0
        self._working = False
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._asides = Turns(limits.evidence_requests)
        self._aside_last = False
        self._owed: list[tuple[str, int]] = []

    def use(self, limits: Limits) -> None:
        """Take these limits in place of those before."""
        self._limits = limits
        self._queue.most = limits.queue_requests
        self._asides.most = limits.evidence_requests

    def why_not(self) -> str:
        """Why no question would be taken now; "" where it would."""
        try:
            if self._recorder is not None:
                self._recorder.check()
        except UnavailableError as error:
            return str(error)
        return ""

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether a new request will wait for longer than this turn of the loop."""
        return self._working or len(self._queue) > self._limits.inline_rows

    def submit(self, request: Waiting, *, alone: bool = False) -> asyncio.Future[Reply]:
        """Put a request into the next batch.

        Args:
            alone: nobody else asks anything that could join it. What is cheap is answered on return then.

        Raises:
            UnavailableError: too many are waiting, or it would wait for too long; or what is answered cannot be written down.
        """
        if self._recorder is not None:
            self._recorder.check()
        now = request.since = time.monotonic()
        request.deadline = min(request.deadline, now + self._limits.queue_seconds)
        wait = self._queue.rows_before(request.caller) * self._size.least_row_seconds
        if now + wait >= request.deadline:
            raise UnavailableError(f"it would take about {wait:.1f} s until this request's turn; try again")
        self._queue.put(request)
        if alone and self._expected <= 1 and len(self._queue) == 1 and not (self._scheduled or self._working):
            self._turn()
        else:
            self._schedule()
        return request.reply

    def announce(self) -> None:
        """A request for this model is being read: a batch that others can join may wait for it, though not for long."""
        self._announced += 1

    def sweep(self) -> None:
        """Answers those who have waited too long; to be called now and then."""
        self._dismiss(self._queue.sweep())
        if self._recorder is not None:
            self._recorder.sweep(self._limits.queue_seconds)

    async def close(self) -> None:
        """Begin no further batch, and wait for the end of the one under way, or until a thread has it: before, nobody else gets a word in with the enclave."""
        self._closed = True
        end = time.monotonic() + 2 * THREAD_SECONDS
        while self._working and time.monotonic() < end:
            await asyncio.sleep(_END_SECONDS)

    async def between(self, call: Callable[[], Result], caller: str) -> Result:
        """Run something on the worker thread while no batch is computed. Takes turns with batches, where there are both.

        Raises:
            UnavailableError: too many are waiting, or too many of this caller's.
        """
        turn = self._asides.join(caller)
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
        if not self._asides.leave(turn) and turn.done() and not turn.cancelled():
            self._rest()

    def _give_turn(self) -> bool:
        """Whether somebody got a turn between two batches."""
        if not (self._aside_last and self._queue) and self._asides.give():
            self._working = self._aside_last = True
            return True
        self._aside_last = False
        return False

    def _rest(self) -> None:
        self._working = False
        if self._queue or self._asides:
            self._schedule()

    def _schedule(self) -> None:
        if not (self._scheduled or self._working or self._closed):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        if self._closed:
            return
        if self._still_coming():
            asyncio.get_running_loop().call_soon(self._turn)
            return
        self._scheduled, self._seen = False, 0
        if self._give_turn():
            self._write_down()
            return
        batch, late = self._queue.take(self._size.most(self._limits.compute_rows))
        if late:
            self._dismiss(late)
        if batch:
            self._answer(Job(batch))
        self._write_down()
        if self._queue or self._asides:
            self._schedule()

    def _still_coming(self) -> bool:
        """Whether to look at the next turn of the loop too: as long as turns bring requests, or the heads of some, up to as many as were answered just now.

        Else the first of them gets a batch of its own, which costs nearly as much as a full one. The thread that reads HTTP is let in first: it
        may share a core with the loop. Who asks alone waits for nobody, and a batch that is as large as pays for no more. What has not begun to
        come is not waited for: where clients ask when they like, and not because they were answered, that would be lost time.
        """
        waiting = len(self._queue)
        if waiting >= min(self._expected, self._limits.inline_rows, self._size.most(self._limits.compute_rows)):
            return False
        now, brought = time.perf_counter(), waiting + self._announced
        if not self._seen:
            self._look_until = now + LOOK_SECONDS
        if brought != self._seen:
            self._seen, self._looks = brought, LOOKS
        if not self._looks or now > self._look_until:
            return False
        self._looks -= 1
        os.sched_yield()
        return True

    def _answer(self, job: Job) -> None:
        quick = self._is_quick(job.rows)
        replies = self._at_once(job, cheap=quick) if quick or self._begin is not None else None
        if replies is not None:
            self._finish(job.batch, replies)
            return
        self._working = True
        if job.pending is not None and job.answered is None:
            with suppress(OSError):  # where it cannot be watched, a thread waits
                when_readable(job.pending.fileno(), partial(self._arrived, job))
                return
        self._leave_to_thread(job)

    def _leave_to_thread(self, job: Job) -> None:
        self._task = asyncio.get_running_loop().create_task(self._aside(job))

    def _arrived(self, job: Job, there: bool) -> None:  # noqa: FBT001  a callback
        """An enclave has answered, or is so slow, also in the middle of its answer, that a thread is to wait for it."""
        replies = self._settled(job) if there and self._is_there(job) else None
        if replies is None:
            self._leave_to_thread(job)
        else:
            self._end(job, replies)

    def _is_there(self, job: Job) -> bool:
        try:
            return job.pending is not None and job.pending.is_whole()
        except Exception:  # the thread that waits for it then tells whoever asked
            logger.exception("it cannot be seen whether an enclave has answered")
            return False

    def _end(self, job: Job, replies: list[Reply]) -> None:
        """Whatever becomes of a batch, the next has its turn."""
        try:
            self._finish(job.batch, replies)
        finally:
            self._rest()

    def _finish(self, batch: list[Waiting], replies: list[Reply]) -> None:
        if self._recorder is None:
            self._deliver(batch, replies)
        else:
            self._recorder.record(batch, replies, self._deliver, hold_back)
            self._write_down()

    def _write_down(self) -> None:
        """Whatever is answered; but where the next batch is computed at once, together with that."""
        if self._recorder is not None:
            self._recorder.flush(more=len(self._queue) > 0 and not self._working)

    def _deliver(self, batch: Sequence[Waiting], replies: Sequence[Reply]) -> None:
        self.count.note(batch, replies)
        self._expected = len(batch) + len(self._queue)
        finish(batch, replies)

    def _dismiss(self, late: list[Waiting]) -> None:
        self.count.dismissed += len(late)
        finish(late, failed(late, UnavailableError.code, _NO_TIME))

    def _is_quick(self, rows: float) -> bool:
        """Whether a batch may begin on the loop's thread. One that is begun elsewhere can be left to another thread still."""
        known = self._size.row_seconds
        if rows > self._limits.inline_rows or (known is None and self._begin is None):
            return False
        return rows * (known or 0.0) <= INLINE_SECONDS

    def _at_once(self, job: Job, *, cheap: bool) -> list[Reply] | None:
        """Answer and charge a batch without waiting, but for an enclave where it is cheap; None where that cannot be, and what is left is for later or another thread."""
        try:
            left = self._budget.left_at_once({request.caller for request in job.batch})
            if left is None:
                return None
            job.left = left
            asks = job.asks()
            if self._begin is None:
                job.answered = self._call(asks)
            else:
                job.pending = self._begin(asks, cheap=cheap)
                if job.pending is None or not (cheap and job.pending.wait(INLINE_SECONDS) and self._is_there(job)):
                    return None
        except Exception as error:  # noqa: BLE001  whatever fails, every request gets an answer
            return None if job.spoilt() else failure(job.batch, error)
        return self._settled(job)

    def _settled(self, job: Job) -> list[Reply] | None:
        """Take what a model has answered, and charge it, without waiting; None where that cannot be."""
        try:
            if job.answered is None and job.pending is not None:
                job.answered = job.pending.result()
            if job.answered is None:
                return None
            self._size.note(job.rows, time.perf_counter() - job.started)
            if self._owed:
                return None
            job.fresh = self._budget.charge_fresh_at_once(job.news(job.answered))
            if job.fresh is None:
                return None
            granted = self._budget.charge_at_once(job.wants(job.answered))
            return None if granted is None else self._charged(job, job.answered, job.fresh, granted)
        except Exception as error:  # noqa: BLE001  whatever fails, every request gets an answer
            return failure(job.batch, error)

    async def _aside(self, job: Job) -> None:
        replies = failed(job.batch)
        try:
            replies = await asyncio.get_running_loop().run_in_executor(self._worker, self._work, job)
        finally:
            self._end(job, replies)

    def _work(self, job: Job) -> list[Reply]:
        """What is left to do for a batch, on a thread that may wait; never raises. Nothing else is computed for this model meanwhile."""
        try:
            replies = job.answered
            if replies is None:
                if job.pending is not None:
                    replies = job.pending.result()
                else:
                    job.left = {caller: self._budget.left(caller) for caller in {r.caller for r in job.batch}}
                    replies = self._call(job.asks())
                self._size.note(job.rows, time.perf_counter() - job.started)
            fresh = self._charge_fresh(job.news(replies)) if job.fresh is None else job.fresh
            return self._charged(job, replies, fresh, self._budget.charge(job.wants(replies)))
        except Exception as error:  # noqa: BLE001  whatever fails, every request gets an answer
            return self._without(job, spoilt) if (spoilt := job.spoilt()) else failure(job.batch, error)

    def _without(self, job: Job, spoilt: set[Waiting]) -> list[Reply]:
        """A batch of which nothing was sent because of some of its requests: these are refused alone."""
        others = [request for request in job.batch if request not in spoilt]
        replies = iter(self._work(Job(others)) if others else ())
        return [unsendable() if request in spoilt else next(replies) for request in job.batch]

    def _charge_fresh(self, news: list[tuple[str, int]]) -> list[bool]:
        """Charge new rows, and those of earlier batches that could not be: to the enclave they are not new any more."""
        owed = summed(self._owed)  # the disk may fail for long: one entry a caller, not one a request
        self._owed = [*owed, *news]
        granted = self._budget.charge_fresh(self._owed)  # may raise; then they are owed
        self._owed = []
        return granted[len(owed) :]

    def _charged(self, job: Job, replies: list[Reply], fresh: list[bool], granted: list[bool]) -> list[Reply]:
        if self._budget.counts:
            job.note_left(replies)
        if all(fresh) and all(granted):
            return replies
        good = [a and b for a, b in zip(fresh, granted, strict=True)]
        return [reply if paid else self._exhausted() for reply, paid in zip(replies, good, strict=True)]

    def _exhausted(self) -> Reply:
        """The budget was enough when the batch began, and was used up elsewhere meanwhile: the answer must not leave."""
        code = BudgetExhaustedError.code
        return Reply(code, self._budget.refusal, b"", -1, b"", Outcome(code=code, rows=0))
