"""A client's sessions: which one a sealed request goes into, and when another is offered.

The first request to an enclave offers one; those that are under way at the same time are sealed each for itself, so that a client which
asks much at once begins one session and not many. A session is used until its time or its counters end.

Invariants: each counter is given out once in this process; after a fork both processes could give out the same one, which costs a refusal and
nothing else, since every message has a key of its own (see `garrison.crypto.sessions`).
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from garrison.attest.evidence import KeySet
from garrison.crypto.hpke import ONE_TIME_KEY_BYTES
from garrison.crypto.sessions import SessionKeys
from garrison.protocol.sealed import Grant, RequestHead, seal_request
from garrison.protocol.sealed_session import Bound, Offer, SessionHead, seal_within

MOST_SESSION_SECONDS = 3_600
"""An enclave that grants more is not believed."""
_REST_SECONDS = 10.0
_MOST_SESSIONS = 1024


@dataclass(frozen=True, slots=True, repr=False)
class Words:
    """What a request says, under whatever seal: see `RequestHead` and `SessionHead`."""

    json_bytes: int
    nonce: str
    time: int
    work: str
    body: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Sealed:
    """A sealed request, the key that its answer comes under, and the session that it offers or belongs to."""

    envelope: bytes
    answer_key: bytes
    offer: Offer | None = None
    within: bytes = b""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Session:
    name: bytes
    keys: SessionKeys
    requests: int
    born: float
    seconds: float
    _counters: Iterator[int] = field(default_factory=itertools.count)

    def counter(self, now: float) -> int | None:
        """The next one; None where the session is at its end."""
        if not 0 <= now - self.born < self.seconds:
            return None
        found = next(self._counters)
        return found if found < self.requests else None


class ClientSessions:
    """Sessions with enclaves, one for each key set that was attested.

    Args:
        caller: the name that goes inside.
        clock: seconds since the epoch.
    """

    def __init__(self, caller: str, clock: Callable[[], float]) -> None:
        self._caller = caller
        self._clock = clock
        self._sessions: dict[bytes, _Session] = {}
        self._offered: set[bytes] = set()
        self._resting: dict[bytes, float] = {}

    def forget(self, keys: KeySet, sealed: Sealed) -> None:
        """The enclave does not keep the session any more that this was sealed in."""
        session = self._sessions.get(keys.hpke)
        if session is not None and sealed.within == session.name:
            del self._sessions[keys.hpke]

    @contextmanager
    def seal(self, keys: KeySet, words: Words) -> Iterator[Sealed]:
        """A sealed request; to be held until its answer was read, or there is none."""
        now, name = self._clock(), keys.hpke
        within = self._within(name, words, now)
        if within is not None:
            yield within
            return
        offers = name not in self._offered and not 0 <= now - self._resting.get(name, -_REST_SECONDS) < _REST_SECONDS
        if not offers:
            yield self._first(keys, words, None)
            return
        self._offered.add(name)
        try:
            yield self._first(keys, words, Offer(keys.suite))
        finally:
            self._offered.discard(name)

    def take(self, keys: KeySet, sealed: Sealed, grant: Grant | None, manifest: str, guard: str, asked: float) -> None:
        """What the answer to a request says of the session that it offered.

        Args:
            manifest, guard: of the attested model.
            asked: when the request was sealed.

        Raises:
            ProofError: the grant is not for this offer.
        """
        if sealed.offer is None:
            return
        if max(len(self._sessions), len(self._resting)) >= _MOST_SESSIONS:
            self._sessions.clear()
            self._resting.clear()
        if grant is None:  # the enclave keeps as many as it may
            self._resting[keys.hpke] = self._clock()
            return
        bound = Bound(keys.signing, manifest, guard, self._caller)
        made = sealed.offer.take(grant, sealed.envelope, bound)
        seconds = min(grant.seconds, MOST_SESSION_SECONDS)
        self._sessions[keys.hpke] = _Session(grant.session, made, grant.requests, asked, seconds)

    def _within(self, name: bytes, words: Words, now: float) -> Sealed | None:
        session = self._sessions.get(name)
        if session is None:
            return None
        counter = session.counter(now)
        if counter is None:
            self._sessions.pop(name, None)
            return None
        head = SessionHead(words.json_bytes, words.nonce, words.time, words.work)
        return Sealed(*seal_within(session.keys, session.name, counter, head, words.body), within=session.name)

    def _first(self, keys: KeySet, words: Words, offer: Offer | None) -> Sealed:
        key = secrets.token_bytes(ONE_TIME_KEY_BYTES)
        offered = b"" if offer is None else offer.content
        head = RequestHead(self._caller, words.json_bytes, words.nonce, key, words.time, words.work, offered)
        return Sealed(seal_request(keys.suite, keys.hpke, keys.epoch, head, words.body), key, offer)
