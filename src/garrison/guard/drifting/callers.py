"""The callers who ask most, and what each has asked: so many, however many there are.

Metwally, Agrawal and El Abbadi's space-saving counters (ICDT 2005), faded as the sketch is: whoever comes anew takes the place of the one who asks least, and its
count. So who asks a fair share is there; who asks little may be forgotten, and a crowd of accounts that ask a little each is seen only together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from garrison.types import FloatArray, IntArray

_LEAST_FADE = 1e-3
NEW_AT_ONCE = 8
"""So many callers of one block may push others out, those who ask most in it."""


class TopCallers:
    """See the module's docstring.

    Args:
        most: callers that are told apart.
        bins: of the sketch of each.

    Attributes:
        names: by place; "" for nobody.
        weight: shape (most,), about how much each asks, as a share of all rows; what it was given when it came in counts with it.
        rows: shape (most,), rows asked since it came in.
    """

    def __init__(self, most: int, bins: int) -> None:
        self.names = [""] * most
        self.weight = np.zeros(most)
        self.rows: IntArray = np.zeros(most, np.int64)
        self._own: FloatArray = np.zeros((most + 1, bins), np.float32)
        """The last line is of all who are not told apart: nobody reads it."""
        self._fade = 1.0
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shares(self) -> FloatArray:
        """What each contributes to the sketch of all, shape (most, bins)."""
        return self._own[:-1] * np.float32(self._fade)

    def places_of(self, names: Sequence[str], counts: IntArray) -> npt.NDArray[np.intp]:
        """Where some callers stand, `len(self)` for those who are not told apart.

        Args:
            counts: rows of each in this block.
        """
        nobody = len(self.names)
        found = [self._places.get(name, nobody) for name in names]
        new = [k for k, place in enumerate(found) if place == nobody and counts[k] > 0]
        if new:
            new.sort(key=lambda k: -int(counts[k]))
            held = {place for place in found if place != nobody}
            pushed = 0
            for k in new:
                place = self._least(held)
                pushed += place >= 0 and bool(self.names[place])
                if place < 0 or pushed > NEW_AT_ONCE:
                    break
                held.add(place)
                self._take(place, names[k])
                found[k] = place
        return np.array(found, np.intp)

    def add(self, place: npt.NDArray[np.intp], codes: npt.NDArray[np.intp], kept: float, each: float) -> None:
        """Fade everybody, and add a block of rows.

        Args:
            place: shape (rows,), from `places_of`.
            codes: shape (columns, rows), bins.
            kept: share that stays.
            each: what a row counts.
        """
        lines, bins = self._own.shape
        self.weight *= kept
        self._fade *= kept
        if self._fade < _LEAST_FADE:
            self._own *= np.float32(self._fade)
            self._fade = 1.0
        # One by one: a histogram of all bins of all callers would be mostly zeros, and push what others need out of the processor's caches.
        np.add.at(self._own.reshape(-1), (codes + place * bins).ravel(), np.float32(each / self._fade))
        rows = np.bincount(place, minlength=lines)[:-1]
        self.weight += each * rows
        self.rows += rows

    def forget(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is not None:
            self.names[place] = ""
            self.weight[place] = self.rows[place] = 0
            self._own[place] = 0

    def restore(self, names: Sequence[str], weight: FloatArray, rows: IntArray, shares: FloatArray) -> None:
        """Put back what was dumped, before anybody asked.

        Raises:
            ValueError: it has another form.
        """
        if len(names) != len(self.names) or len(set(filter(None, names))) != sum(map(bool, names)):
            raise ValueError("other places than there are")
        self.names = list(names)
        self._places = {name: place for place, name in enumerate(names) if name}
        self.weight[:], self.rows[:], self._own[:-1] = weight, rows, shares
        self._fade = 1.0

    def _least(self, held: set[int]) -> int:
        """The place of nobody, or of who asks least; never one of this block's own. -1 for none."""
        weight = self.weight.copy()
        weight[list(held)] = np.inf
        place = int(weight.argmin())
        return place if np.isfinite(weight[place]) else -1

    def _take(self, place: int, name: str) -> None:
        self._places.pop(self.names[place], None)
        self.names[place] = name
        self._places[name] = place
        self.rows[place] = 0
        self._own[place] = 0
