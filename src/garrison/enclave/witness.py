"""The enclave's part in the server's ledger: it signs how long the ledger is, and tells what became of sealed requests without telling of any one.

**Checkpoints.** For one ledger the enclave signs one history that only grows: from its second checkpoint on it is shown the digests of the lines in between, and signs only where they lead
from what it signed before to what it is to sign. Each checkpoint says since which entry that is so, and what was signed before.

Not checked: what stood in the ledger before its first checkpoint; and another enclave, such as one that was started anew, knows nothing of what this one signed.

**Sealed requests.** The host learns of one that there was one, and its rows. True codes are counted here, and leave as a tally of at least `LEAST_REQUESTS`
requests. A minimum alone is not enough: a host may send all of these but one itself. So each count gets two-sided geometric noise (Ghosh, Roughgarden and Sundararajan, STOC 2009,
section 2) with `EPSILON`: a tally is epsilon-differentially private in each request, as each adds one to one count. The bins are fixed at the start, so that a count of 0 has noise too. Both
figures are constants of the enclave's program: the host cannot change them.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from garrison.crypto.signing import AnswerSigner
from garrison.errors import MalformedRequestError, RequestError
from garrison.guard.base import Defense
from garrison.guard.failing import DEFENSE_FAILED
from garrison.protocol.checkpoint import (
    HEAD_BYTES,
    LEDGER_BYTES,
    Checkpoint,
    Place,
    SignedCheckpoint,
    Tally,
    follows,
)
from garrison.protocol.messages import Outcome

LEAST_REQUESTS = 100
EPSILON = 0.5
OK, REPLACED, OTHER = "ok", "ok, replaced", "other"
_INTERNAL = "internal"
_RANDOM = random.SystemRandom()
_LEDGERS = 1024
"""Most ledgers whose length is remembered: one a front worker."""


@dataclass(slots=True)
class _Signed:
    """What was signed of one ledger: the latest place, and the one before; `since`: the first."""

    since: int
    at: int
    head: bytes
    before: Place | None = None


class SealedTally:
    """Counts what became of sealed requests. Safe to use from several threads.

    Args:
        codes: those that may occur; any other is counted as "other".
        clock: seconds since the epoch.
        draw: a fresh number in [0, 1).
    """

    def __init__(
        self,
        codes: Iterable[str],
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._counts = dict.fromkeys((OK, REPLACED, *sorted(codes), OTHER), 0)
        self._requests = 0
        self._clock = clock
        self._draw = draw
        self._since = int(clock())
        self._lock = threading.Lock()

    def count(self, outcome: Outcome) -> None:
        """Count the true outcome of one sealed request."""
        name = REPLACED if outcome.code == OK and outcome.replaced else outcome.code
        with self._lock:
            self._counts[name if name in self._counts else OTHER] += 1
            self._requests += 1

    def take(self) -> Tally | None:
        """The tally since the one before, with noise; None while there are too few."""
        with self._lock:
            if self._requests < LEAST_REQUESTS:
                return None
            counts = {name: count + self._noise() for name, count in self._counts.items()}
            tally = Tally(self._since, self._requests, counts)
            self._counts = dict.fromkeys(self._counts, 0)
            self._requests, self._since = 0, int(self._clock())
            return tally

    def _noise(self) -> int:
        """The difference of two geometric numbers: two-sided geometric."""
        return self._geometric() - self._geometric()

    def _geometric(self) -> int:
        return int(math.log(1.0 - self._draw()) / -EPSILON)


class Witness:
    """Signs checkpoints of ledgers. Safe to use from several threads.

    Args:
        signer: signs the answers too.
        model, guard: digests, see `garrison.protocol.checkpoint.Checkpoint`.
        tally: of sealed requests.
        clock: seconds since the epoch.

    Attributes:
        tally: the same.
    """

    def __init__(
        self,
        signer: AnswerSigner,
        model: str,
        guard: str,
        tally: SealedTally,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = signer
        self._model = model
        self._guard = guard
        self.tally = tally
        self._clock = clock
        self._signed: dict[bytes, _Signed] = {}
        self._lock = threading.Lock()

    def sign(self, ledger: bytes, at: int, head: bytes, start: bytes = b"", bodies: bytes = b"") -> SignedCheckpoint:
        """A signed checkpoint.

        Args:
            ledger: its id, 16 bytes.
            at: sequence number of the last entry.
            head: the chain's hash there, 32 bytes.
            start: the chain's hash at the place that was signed last, or at an earlier one.
            bodies: SHA-256 of the bodies of all lines from there to `head`, one after the other.

        Raises:
            MalformedRequestError: this is no ledger; or what was signed of it before does not go on to `head`.
        """
        if len(ledger) != LEDGER_BYTES or len(head) != HEAD_BYTES or not 0 <= at < 2**63:
            raise MalformedRequestError("a ledger has an id of 16 bytes, a length, and a hash of 32 bytes")
        with self._lock:
            known = self._signed.get(ledger)
            if known is None:
                if len(self._signed) >= _LEDGERS:  # to forget one would let it be signed anew
                    raise MalformedRequestError(f"this enclave signs {_LEDGERS} ledgers, and no more")
                known = self._signed[ledger] = _Signed(at, at, head)
            elif (at, head) != (known.at, known.head):
                if at <= known.at or not follows(start, bodies, known.head, head):
                    raise MalformedRequestError(
                        f"entry {known.at} of this ledger was signed already, and entry {at} does not follow from it"
                    )
                known.before = Place(known.at, known.head.hex())
                known.at, known.head = at, head
            now, since, before = int(self._clock()), known.since, known.before
        tally = self.tally.take()
        made = Checkpoint(ledger.hex(), at, head.hex(), now, self._model, self._guard, since, before, tally)
        return SignedCheckpoint(made, self._signer.public_key, self._signer.sign(made.signed_bytes()))


def make_witness(signer: AnswerSigner, model: str, guard: str, defenses: Iterable[Defense]) -> Witness:
    """The witness of one service, whose requests may end in what its defenses say, in their client's own fault, or in ours."""
    said = {defense.reason or f"guard.{defense.name}" for defense in defenses}
    faults = {kind.code for kind in RequestError.__subclasses__()}
    return Witness(signer, model, guard, SealedTally(said | faults | {DEFENSE_FAILED, _INTERNAL}))
