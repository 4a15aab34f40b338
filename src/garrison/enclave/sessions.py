"""The sessions of sealed requests that an enclave keeps, and which of their counters were here.

A session belongs to one caller, is good for `session_requests` counters and `session_seconds`, and ends with the key that it began with
at the latest. Each counter is taken once. Requests may come in any order within `WINDOW` of the highest counter that came;
what is further behind is refused as if it had come before, because it is not known any more whether it did.

The table is bounded, for each caller and in all. A caller with `sessions_a_caller` who begins another one loses the one that it has not
used for the longest time. Where all callers together have `sessions`, a caller who has fewer than another takes the place of the one
that the caller with the most has not used for the longest time; it gets none where nobody has more than one more than itself. **Names that cost something are kept from
those that cost nothing:** a caller without a key, whose name is its address, takes no place of one with a key, however many that one has; one with a key takes that of an address first.
A request that offered a session and gets none is answered, and the client goes on without.

Invariants: a counter of a session is opened at most once; what does not open changes nothing here; a session that ended is not
opened again, and is dropped as soon as anybody asks; nothing outlives the enclave.

Not covered: the clock is the host's, as for the keys. Who has as many addresses as there are places leaves others without a key none; those pay for a key
exchange with each request. A host that names callers as it likes can end sessions; it can refuse them, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from garrison.crypto.sessions import SessionKeys
from garrison.errors import ReplayError, ServiceError, StaleSessionError
from garrison.limits import Limits
from garrison.protocol.sealed import Grant
from garrison.protocol.sealed_session import Bound, SessionHead, grant_session, open_within, read_place

ADDRESS = "ip:"
"""What the name of a caller without a key begins with."""
WINDOW = 1_024
"""How far behind the highest counter of a session another one may come."""
_ALL_SEEN = (1 << WINDOW) - 1


class Window:
    """Which of a session's counters came: the highest, and a bit for each of the `WINDOW` up to it."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._seen = 0

    def check(self, counter: int) -> None:
        """Whether a counter may still come.

        Raises:
            ReplayError: it came, or is too far behind to know.
        """
        behind = self._top - counter
        if behind >= WINDOW:
            raise ReplayError("this sealed request comes too late after others of its session; seal it anew")
        if behind >= 0 and self._seen >> behind & 1:
            raise ReplayError("this sealed request was here before; seal it anew")

    def mark(self, counter: int) -> None:
        """A counter that was checked has come."""
        ahead = counter - self._top
        if ahead <= 0:
            self._seen |= 1 << -ahead
            return
        self._seen = ((self._seen << ahead) & _ALL_SEEN if ahead < WINDOW else 0) | 1
        self._top = counter


@dataclass(slots=True, eq=False, repr=False)
class _Session:
    caller: str
    keys: SessionKeys
    ends: float
    requests: int
    window: Window


class Sessions:
    """See the module's docstring. To be used from one thread at a time.

    Args:
        signing: public key that signs the answers, 32 bytes.
        manifest, guard: SHA-256 in hex, of the model that is served.
        limits: `session_...` and `sessions...` count here.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        signing: bytes,
        manifest: str,
        guard: str,
        *,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bound = (signing, manifest, guard)
        self._limits = limits
        self._clock = clock
        self._all: dict[bytes, _Session] = {}  # in the order of their birth
        self._mine: dict[str, dict[bytes, None]] = {}  # by caller, the latest used last

    def __len__(self) -> int:
        return len(self._all)

    def grant(self, suite: str, caller: str, name: str, first: bytes, offer: bytes, ends: float) -> Grant | None:
        """A session for a caller who offered one.

        Args:
            caller: as the server names it; the session is this caller's.
            name: as the caller names itself inside.
            first: the whole envelope that the offer came in.
            ends: of the key that `first` was sealed to.

        Returns:
            What to tell the client; None where there is no room, or the offer is none.
        """
        now = self._clock()
        self._forget(now)
        goes = b""
        if len(self._mine.get(caller, ())) >= self._limits.sessions_a_caller:
            goes = next(iter(self._mine[caller]))
        elif len(self._all) >= self._limits.sessions:
            goes = self._who_goes(caller)
            if not goes:
                return None
        seconds = min(self._limits.session_seconds, int(ends - now))
        if seconds < 1:
            return None
        bound, requests = Bound(*self._bound, name), self._limits.session_requests
        try:
            found, keys = grant_session(suite, offer, first, bound, requests=requests, seconds=seconds)
        except ServiceError:
            return None
        if goes:
            self._drop(goes)
        self._all[found.session] = _Session(caller, keys, now + seconds, requests, Window())
        self._mine.setdefault(caller, {})[found.session] = None
        return found

    def open(self, caller: str, envelope: bytes) -> tuple[SessionHead, bytes, bytes]:
        """Head and body of a request within a session, once, and the key for the answer.

        Raises:
            StaleSessionError: there is no such session of this caller (any more), or it is used up.
            ReplayError: it was opened before, or that is not known any more.
            SealedRequestError: it does not open.
        """
        name, counter = read_place(envelope)
        now = self._clock()
        self._forget(now)
        session = self._all.get(name)
        if session is None or session.caller != caller or now >= session.ends or counter >= session.requests:
            raise StaleSessionError(
                "sealed within a session that this enclave does not keep for this caller (any more); begin another one"
            )
        session.window.check(counter)
        found = open_within(session.keys, envelope)
        session.window.mark(counter)
        mine = self._mine[caller]
        del mine[name]
        mine[name] = None
        return found

    def _who_goes(self, caller: str) -> bytes:
        """Whose session makes room for one of this caller, in a full table; empty for none's."""
        free = {name: mine for name, mine in self._mine.items() if name.startswith(ADDRESS)}
        if free and not caller.startswith(ADDRESS):
            return next(iter(_fullest(free)))
        fullest = _fullest(free if caller.startswith(ADDRESS) else self._mine)
        if len(fullest) <= len(self._mine.get(caller, ())) + 1:  # both would only change places
            return b""
        return next(iter(fullest))

    def _forget(self, now: float) -> None:
        """Drop those that ended, oldest first. One that ends before an older one goes with that."""
        while self._all:
            name = next(iter(self._all))
            if now < self._all[name].ends:
                return
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        caller = self._all.pop(name).caller
        mine = self._mine[caller]
        del mine[name]
        if not mine:
            del self._mine[caller]


def _fullest(shares: dict[str, dict[bytes, None]]) -> dict[bytes, None]:
    """The sessions of the caller with the most."""
    return max(shares.values(), key=len, default={})
