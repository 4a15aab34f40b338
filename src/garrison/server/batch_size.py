"""How many rows of a model to compute at once: no more than pays.

A small model gains much from a batch, a large one little or nothing, and there a batch only makes everybody wait for everybody. Which it
is, is learned while serving: seconds a row, by size, in powers of two. A size that has not been seen is tried when there is enough
waiting; a size that gains less than `GAIN` over half of it is not used, and tried again now and then. It is tried twice: the first batch of a
size finds cold caches, and may take several times as long as the next.

Batches that are done within `CHEAP_SECONDS` are not bounded.
"""

from __future__ import annotations

CHEAP_SECONDS = 0.01
GAIN = 0.9
"""Twice the rows pay if a row then takes at most this share of the time."""
FIRST_ROWS = 32
"""Before anything is known."""
RETRY_BATCHES = 256
LOOK_BATCHES = 8
"""How often a bound is looked for where there is none and nothing has become dear."""
_FORGET = 1.02
"""The least of late counts: a busy machine makes single measurements too large, and never too small."""


class BatchSize:
    """What batches of one model take.

    Attributes:
        least_row_seconds: what a row takes in the batches that suit best; 0 before the first.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, float] = {}
        self._seen_once: set[int] = set()
        self._since_retry = 0
        self._most, self._bounded = FIRST_ROWS, True
        self._latest: float | None = None
        self.least_row_seconds = 0.0

    @property
    def row_seconds(self) -> float | None:
        """What a row takes, at the size of the latest batch; None before the first."""
        return self._latest

    def note(self, rows: float, seconds: float) -> None:
        """A batch was computed."""
        size = 1 << (max(int(rows), 1).bit_length() - 1)
        measured, known = seconds / max(rows, 1.0), self._by_size.get(size)
        self._latest = self._by_size[size] = measured if known is None else min(measured, known * _FORGET)
        if known is None:
            self._seen_once.add(size)
        else:
            self._seen_once.discard(size)
        self._since_retry += 1
        if self._bounded and self._since_retry >= RETRY_BATCHES:
            self._since_retry = 0
            self._by_size.pop(2 * self._most, None)
        self.least_row_seconds = min(self._by_size.values(), default=0.0)
        if (
            known is None
            or self._bounded
            or not self._since_retry % LOOK_BATCHES
            or size * self._latest > CHEAP_SECONDS
        ):
            self._most, self._bounded = self._find()

    def most(self, limit: float) -> float:
        """Rows that the next batch should have at most."""
        return min(float(self._most), limit) if self._bounded else limit

    def _find(self) -> tuple[int, bool]:
        """The largest size that pays or is to be tried, and whether it is a bound."""
        size = max((s for s, seconds in self._by_size.items() if s * seconds <= CHEAP_SECONDS), default=1)
        here = self._by_size.get(size)
        if here is None:
            return size, True  # only larger ones were seen, and they are not cheap
        while (twice := self._by_size.get(2 * size)) is not None:
            if twice > GAIN * here:
                return (2 * size if 2 * size in self._seen_once else size), True
            size, here = 2 * size, twice
        return 2 * size, 2 * size * here > CHEAP_SECONDS
