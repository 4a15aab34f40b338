"""Proofs of work, as a client makes them: before each request where the service asks everybody, else from its first demand on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from garrison.client.talk import Talk, Work
from garrison.errors import ServiceError
from garrison.protocol import work
from garrison.protocol.oip_metadata import ModelMetadata, WorkMetadata

EVERYBODY = "all"
MOST_HASHES = 2**36
"""A service that asks more of one request gets none: it takes a day."""
MOST_AT_ONCE = 2**22
"""So many hashes a request, where it can be split: some seconds, so that a proof is still fresh when it is done."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a request has to work for.

    Attributes:
        terms: what the service asks.
        rows: of the request.
        caller: id of the API key, "" without one.
        progress: told of the hashes that were made, and how many it takes on average.
    """

    terms: WorkMetadata
    rows: int
    caller: str
    progress: work.Progress | None
    clock: Callable[[], float] = time.time

    def proof(self, public_key: bytes, body: bytes) -> Talk[str]:
        """A proof for a request with this body.

        Raises:
            ServiceError: it would take too much.
        """
        hashes = self.rows << min(self.terms.bits, work.MOST_BITS)
        if hashes > MOST_HASHES:
            raise ServiceError(
                f"the service asks for {hashes:,} hashes for {self.rows} rows; this client makes {MOST_HASHES:,} at most"
            )
        solve = partial(
            work.solve,
            public_key,
            self.caller,
            body,
            rows=self.rows,
            bits=self.terms.bits,
            when=int(self.clock()),
            progress=self.progress,
        )
        found = yield Work(solve)
        if not isinstance(found, str):
            raise ServiceError("a proof of work was asked for, and none was made")
        return found


def terms_of(metadata: ModelMetadata) -> WorkMetadata | None:
    """What a model asks; None for nothing.

    Raises:
        ServiceError: work that cannot be.
    """
    terms = None if metadata.garrison is None else metadata.garrison.work
    if terms is not None and terms.bits < 0:
        raise ServiceError(f"the service asks for 2^{terms.bits} hashes a row; expected 2^0 at least")
    return terms


def rows_at_once(terms: WorkMetadata | None, rows: int) -> int:
    """Rows of one request, at most so many, where each has to be worked for."""
    return rows if terms is None else max(1, min(rows, MOST_AT_ONCE >> min(terms.bits, work.MOST_BITS)))
