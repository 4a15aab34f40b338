"""Accounts that behave alike, and the evidence against each group of them, summed.

Detectors name pairs. A caller belongs to one group at most; a group's label is the place of one of its members. Invariant: whoever stands alone has
its own place as label.
"""

from __future__ import annotations

import numpy as np

from garrison.guard.watching.evidence import Evidence, Rung
from garrison.guard.watching.places import PlaceArray
from garrison.types import FloatArray


class Groups:
    """Who belongs together.

    Args:
        alone: the evidence against each caller.
        thresholds, half_life: see `Evidence`.
        places: entries at first.

    Attributes:
        evidence: by label; of whoever stands alone there is none here.
        label: shape (places,).
        linked: shape (places,), when a place was last named in a pair.
    """

    def __init__(self, alone: Evidence, thresholds: FloatArray, half_life: float, places: int) -> None:
        self._alone = alone
        self._half_life = half_life
        self.evidence = Evidence(thresholds, half_life, places)
        self.label = np.arange(places)
        self.linked = np.full(places, -np.inf)
        self._sizes: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Whether there is any group."""
        return bool(self._sizes)

    def grow(self, places: int) -> None:
        have = len(self.label)
        self.label = np.concatenate([self.label, np.arange(have, places)])
        self.linked = np.concatenate([self.linked, np.full(places - have, -np.inf)])
        self.evidence.table.grow(places)

    def size(self, place: int) -> int:
        """How many are summed where this one stands."""
        return self._sizes.get(int(self.label[place]), 1)

    def members(self, place: int) -> PlaceArray:
        """All places of its group, its own too."""
        if not self._sizes:
            return np.array([place])
        return np.flatnonzero(self.label == self.label[place])

    def in_groups(self, places: PlaceArray) -> PlaceArray:
        """Which of these rows' callers (numbers of rows) belong to a group."""
        labels = self.label[places]
        return np.flatnonzero(np.isin(labels, list(self._sizes)))

    def link(self, pairs: PlaceArray, now: float) -> list[Rung]:
        """Sum up pairs of callers from now on. Groups that were changed and whose alarm rings come back; `Rung.key` is their label, `Rung.row` -1 where it
        rang before."""
        self.linked[pairs] = now
        begun: list[Rung] = []
        for a, b in pairs.tolist():
            one, other = int(self.label[a]), int(self.label[b])
            if one != other:
                begun += self._merge(one, other, now)
        return begun

    def part(self, places: PlaceArray, now: float) -> None:
        """Let those go whom no pair has named for a half-life."""
        if self._sizes:
            for place in np.unique(places[now - self.linked[places] > self._half_life]).tolist():
                self.leave(place)

    def leave(self, place: int) -> None:
        """One caller stands alone again; its group keeps what was summed, as long as there are two left."""
        label = int(self.label[place])
        if label not in self._sizes:
            return
        rest = np.flatnonzero(self.label == label)
        rest = rest[rest != place]
        self.label[place] = place
        if len(rest) < 2:
            self.label[rest] = rest
            self._drop(label)
            return
        self._sizes[label] -= 1
        if label == place:
            heir = int(rest[0])
            self.label[rest] = heir
            table = self.evidence.table
            for name in table.columns:
                table[name][heir] = table[name][label]
            self._sizes[heir] = self._sizes[label]
            self._drop(label)
            self.evidence.look()

    def look(self) -> None:
        """Count anew, after `label` was written to from outside."""
        labels, counts = np.unique(self.label, return_counts=True)
        self._sizes = {int(label): int(n) for label, n in zip(labels, counts, strict=True) if n > 1}
        self.evidence.look()

    def _drop(self, label: int) -> None:
        del self._sizes[label]
        self.evidence.empty(np.array([label]))

    def _merge(self, one: int, other: int, now: float) -> list[Rung]:
        mine, theirs = self._weight(one, now), self._weight(other, now)
        self._sizes[one] = self._sizes.get(one, 1) + self._sizes.pop(other, 1)
        self.evidence.empty(np.array([other]))
        self.label[self.label == other] = one
        return self.evidence.put(one, mine[0] + theirs[0], mine[1] + theirs[1], now)

    def _weight(self, label: int, now: float) -> tuple[FloatArray, FloatArray]:
        """Sums and alarms of a group, or sums of whoever stands alone: its own alarm stays its own."""
        key = np.array([label])
        if label in self._sizes:
            return self.evidence.sums(key, now)[0], self.evidence.alarms(key, now)[0]
        own = self._alone.sums(key, now)[0]
        return own, np.zeros_like(own)
