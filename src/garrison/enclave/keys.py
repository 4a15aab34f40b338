"""The keys that requests are sealed to, and what was opened with them already.

One HPKE key pair an *epoch*. An epoch is offered in new evidence for `key_offered_seconds`, and still opens requests for
`key_grace_seconds` after that; its `KeySet` says when it ends. The signing key stays as long as the enclave runs.

Each epoch remembers a digest of the encapsulated key of every envelope that it opened: a second one with the same is a replay. The set is bounded
(`replay_entries`). When it is full, nothing more is opened with that key, and the ring makes a new one at once, if the newest has at
least `key_least_seconds`; a client learns `request.stale_key`, attests again and goes on. If the newest key is younger, the client is told to
come again later ("unavailable"). It never goes on without remembering.

Invariants: an envelope is opened at most once in the life of its key; a key that has ended, or whose set is full, is dropped and its
set with it, so that memory is bounded; at most `_MOST_EPOCHS` keys are alive, however short they are offered.

Not covered: the clock is the host's. A host that holds it back keeps a key alive longer; it cannot have an envelope opened twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from garrison.attest.evidence import KeySet
from garrison.crypto.hpke import PREFERRED, KeyPair
from garrison.errors import ReplayError, StaleKeyError, UnavailableError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.sealed import key_id, read_outside, replay_mark, split_envelope

logger = logging.getLogger(__name__)

_MOST_EPOCHS = 8


class Epoch:
    """One key pair and its replay set."""

    def __init__(self, number: int, suite: str, signing: bytes, born: float, limits: Limits) -> None:
        self._pair = KeyPair.generate(suite)
        self._seen: set[bytes] = set()
        self._most = limits.replay_entries
        self.born = born
        self.ends = born + limits.key_offered_seconds + limits.key_grace_seconds
        self.key_id = key_id(suite, self._pair.public)
        self.keys = KeySet(suite=suite, hpke=self._pair.public, signing=signing, epoch=number, expires=int(self.ends))

    @property
    def full(self) -> bool:
        return len(self._seen) >= self._most

    def open(self, envelope: bytes) -> bytes:
        """The letter inside. Only what opens is remembered, so that garbage does not fill the set.

        Raises:
            ReplayError: it was opened before.
            SealedRequestError: it does not open.
        """
        mark = replay_mark(self._pair.suite, envelope)
        if mark in self._seen:
            raise ReplayError("this sealed request was here before; seal it anew")
        info, message = split_envelope(envelope)
        letter = self._pair.open(message, info)
        self._seen.add(mark)
        return letter


class KeyRing:
    """All keys of an enclave. To be used from one thread at a time.

    Args:
        signing: public key that signs the answers, 32 bytes.
        suite: name of the HPKE suite.
        limits: `key_...` and `replay_entries` count here.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        signing: bytes,
        *,
        suite: str = PREFERRED,
        limits: Limits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signing = signing
        self._suite = suite
        self._limits = limits
        self._clock = clock
        self._epochs: dict[bytes, Epoch] = {}
        self._newest = self._rotate(clock())

    @property
    def suite(self) -> str:
        """Of all keys."""
        return self._suite

    def ends(self, envelope: bytes) -> float:
        """When the key that an envelope is sealed to ends; 0 where it has ended.

        Raises:
            SealedRequestError: no envelope.
        """
        epoch = self._epochs.get(read_outside(envelope).key_id)
        return 0.0 if epoch is None else epoch.ends

    def offered(self) -> KeySet:
        """The key set for new evidence."""
        now = self._clock()
        age = now - self._newest.born
        old = not 0 <= age < self._limits.key_offered_seconds
        if old or (self._newest.full and age >= self._limits.key_least_seconds):
            self._newest = self._rotate(now)
        return self._newest.keys

    def open(self, envelope: bytes) -> bytes:
        """The letter in an envelope, once.

        Raises:
            SealedRequestError: no envelope, or one that does not open.
            StaleKeyError: sealed to a key that is not in use (any more).
            ReplayError: it was opened before.
            UnavailableError: no more can be remembered just now.
        """
        outside = read_outside(envelope)
        epoch = self._epochs.get(outside.key_id)
        now = self._clock()
        if epoch is None or epoch.keys.epoch != outside.epoch or now >= epoch.ends:
            raise StaleKeyError("sealed to a key that this enclave does not have (any more); attest again")
        if epoch.full:
            self._make_room(epoch, now)
        return epoch.open(envelope)

    def _make_room(self, epoch: Epoch, now: float) -> None:
        """What to say while an epoch's replay set is full; always raises."""
        if epoch is self._newest:
            if now - epoch.born < self._limits.key_least_seconds:
                raise UnavailableError("too many sealed requests at once for the present key; try again")
            self._newest = self._rotate(now)
        raise StaleKeyError("the key that this was sealed to has opened as much as it may; attest again")

    def _rotate(self, now: float) -> Epoch:
        """A new epoch. Those that can open nothing more are dropped, and the oldest where there would be too many."""
        useful = [epoch for epoch in self._epochs.values() if now < epoch.ends and not epoch.full]
        kept = useful[-(_MOST_EPOCHS - 1) :]
        number = 1 if not self._epochs else self._newest.keys.epoch + 1
        made = Epoch(number, self._suite, self._signing, now, self._limits)
        self._epochs = {epoch.key_id: epoch for epoch in (*kept, made)}
        logger.info(
            "sealed requests: key %d (%s) until %d; %d keys in use", number, self._suite, made.ends, len(self._epochs)
        )
        return made
