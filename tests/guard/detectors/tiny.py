"""Detectors so simple that a test can say what they must find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.types import Array, FloatArray

REGISTRY = {
    "tiny": "tests.guard.detectors.tiny:Tiny",
    "linking": "tests.guard.detectors.tiny:Linking",
    "failing": "tests.guard.detectors.tiny:Failing",
    "unsound": "tests.guard.detectors.tiny:Unsound",
}


class Tiny(Detector, frozen=True):
    """`step` nats for a row of low confidence, `relief` for another. Counts the rows of each caller, and of all."""

    name: ClassVar[str] = "tiny"

    step: float = 1.0
    relief: float = -0.5
    below: float = 0.5

    def columns(self, width: int) -> Mapping[str, Column]:
        return {"count": Column("int32"), "latest": Column("float32", (width,), -1)}

    def shares(self, width: int) -> Mapping[str, Column]:
        return {"all": Column("int64", (1,)), "pictures": Column("float32", (2, width), 3)}

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        np.add.at(columns["count"], seen.place, 1)
        columns["latest"][seen.place] = seen.projection
        shared["all"] += len(seen.place)
        found: FloatArray = np.where(seen.confidence < self.below, self.step, self.relief)
        return found


class Linking(Detector, frozen=True):
    """Links whoever asks a row whose first number in the projection is the same as that of the row asked before, by whomever."""

    name: ClassVar[str] = "linking"

    def shares(self, width: int) -> Mapping[str, Column]:
        return {"last": Column("float64", (2,), -1)}

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        return np.zeros(len(seen.place))

    def links(
        self,
        seen: Seen,
        columns: Mapping[str, Array],
        shared: Mapping[str, Array],
    ) -> npt.NDArray[np.intp] | None:
        pairs = []
        for place, number in zip(seen.place.tolist(), seen.projection[:, 0].tolist(), strict=True):
            before, one = shared["last"].tolist()
            if before == number and int(one) != place:
                pairs.append((int(one), place))
            shared["last"][:] = number, place
        return np.array(pairs, dtype=np.intp) if pairs else None

    def forget(self, places: npt.NDArray[np.intp], shared: Mapping[str, Array]) -> None:
        if shared["last"][1] in places:
            shared["last"][:] = -1


class Failing(Detector, frozen=True):
    """Raises."""

    name: ClassVar[str] = "failing"

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        raise RuntimeError("a detector's fault")


class Unsound(Detector, frozen=True):
    """Says NaN."""

    name: ClassVar[str] = "unsound"

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        return np.full(len(seen.place), np.nan)
