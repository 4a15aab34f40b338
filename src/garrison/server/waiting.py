"""Requests that wait for a model, in a queue that is fair to callers; and those for evidence, which have turns between batches.

Callers take turns, one request a turn, the oldest of each first: a caller with thousands of waiting requests puts another's off by one
request a turn. A caller may have as many waiting as there are places left. So one alone gets half of the queue, two get a third
each, and there is always a place for one who comes anew, until many callers have filled it together.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator

from garrison.errors import UnavailableError
from garrison.protocol.http_signature import Form
from garrison.protocol.messages import Reply
from garrison.server.model_budget import Left

NEVER = float("inf")


class Waiting:
    """A request in the queue. `rows` is what it may cost, in rows; `reply` is cancelled when its client has gone.

    Attributes:
        deadline: by `time.monotonic`, when its client gives up; `NEVER` where it does not say.
        work: its proof of work; "" for none.
        form: the HTTP message signature that is wanted for its answer; None for none.
        since: by `time.monotonic`, when it came into the queue.
        left: what its caller has left after it; None until that is known.
    """

    __slots__ = (
        "body",
        "caller",
        "deadline",
        "form",
        "json_bytes",
        "left",
        "nonce",
        "reply",
        "rows",
        "sealed",
        "since",
        "work",
    )

    def __init__(
        self,
        caller: str,
        body: bytes,
        json_bytes: int,
        nonce: str,
        rows: float,
        *,
        sealed: bool = False,
        deadline: float = NEVER,
        work: str = "",
    ) -> None:
        self.caller = caller
        self.body = body
        self.json_bytes = json_bytes
        self.nonce = nonce
        self.rows = rows
        self.sealed = sealed
        self.deadline = deadline
        self.work = work
        self.form: Form | None = None
        self.left: Left | None = None
        self.since = 0.0
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()


class FairQueue:
    """The waiting requests of one model, by caller.

    Args:
        most: how many may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._callers: dict[str, deque[Waiting]] = {}  # in the order of their turns
        self._count = 0
        self._rows = 0.0

    def __len__(self) -> int:
        return self._count

    def rows_before(self, caller: str) -> float:
        """About how many rows are computed before what this caller asks next."""
        mine = self._callers.get(caller)
        turns = (len(mine or ()) + 1) * len(self._callers)
        return self._rows if turns >= self._count else self._rows * turns / self._count

    def put(self, request: Waiting) -> None:
        """Add a request.

        Raises:
            UnavailableError: too many are waiting.
        """
        free = self.most - self._count
        mine = self._callers.get(request.caller)
        if free <= 0:
            raise UnavailableError(f"{self.most} requests are waiting already; try again")
        if mine is None:
            mine = self._callers[request.caller] = deque()
        elif len(mine) >= free:
            raise UnavailableError(f"{len(mine)} of your requests are waiting already, which is your share; try again")
        mine.append(request)
        self._count += 1
        self._rows += request.rows

    def take(self, most_rows: float) -> tuple[list[Waiting], list[Waiting]]:
        """The next batch, at least one request where there is one, and those whose deadline has passed; both leave the queue.

        Those whose client has gone leave it too.
        """
        now = time.monotonic()
        batch: list[Waiting] = []
        late: list[Waiting] = []
        rows = 0.0
        while self._callers:
            caller = next(iter(self._callers))
            request = self._callers[caller][0]
            wanted = not request.reply.done()
            in_time = request.deadline > now
            if wanted and in_time and batch and rows + request.rows > most_rows:
                break
            self._leave(caller, next_turn=wanted and in_time)
            if wanted and in_time:
                batch.append(request)
                rows += request.rows
            elif wanted:
                late.append(request)
        return batch, late

    def sweep(self) -> list[Waiting]:
        """Those whose deadline has passed; they leave, and so do those whose client has gone."""
        now = time.monotonic()
        late = [r for r in self._all() if not r.reply.done() and r.deadline <= now]
        if late or any(r.reply.done() for r in self._all()):
            kept = {
                caller: deque(r for r in mine if not r.reply.done() and r.deadline > now)
                for caller, mine in self._callers.items()
            }
            self._callers = {caller: mine for caller, mine in kept.items() if mine}
            self._count = sum(map(len, self._callers.values()))
            self._rows = sum(r.rows for r in self._all())
        return late

    def _all(self) -> Iterator[Waiting]:
        for mine in self._callers.values():
            yield from mine

    def _leave(self, caller: str, *, next_turn: bool) -> None:
        """Take a caller's oldest request out; with `next_turn` it is the others' turn then."""
        mine = self._callers[caller]
        self._rows -= mine.popleft().rows
        self._count -= 1
        if not mine:
            del self._callers[caller]
            if not self._callers:
                self._rows = 0.0  # what rounding has left over
        elif next_turn:
            del self._callers[caller]
            self._callers[caller] = mine


class Turns:
    """Who waits to be let in between two batches, the oldest first. Places are shared out as those of the queue are.

    Args:
        most: how many may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: dict[asyncio.Future[None], str] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, caller: str) -> asyncio.Future[None]:
        """Wait for a turn; it has come when this is done.

        Raises:
            UnavailableError: too many are waiting, or too many of this caller's.
        """
        free = self.most - len(self._waiting)
        mine = sum(other == caller for other in self._waiting.values())
        if free <= 0:
            raise UnavailableError(f"{self.most} requests for evidence are waiting already; try again")
        if mine >= free:
            raise UnavailableError(
                f"{mine} of your requests for evidence are waiting already, which is your share; try again"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = caller
        return turn

    def leave(self, turn: asyncio.Future[None]) -> bool:
        """Whether it was waiting still."""
        return self._waiting.pop(turn, None) is not None

    def give(self) -> bool:
        """Give the oldest its turn; whether there was one who wants it."""
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return True
        return False
