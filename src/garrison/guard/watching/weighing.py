"""What all detectors say of some rows, side by side."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from garrison.errors import GuardError
from garrison.guard.detectors.base import Seen
from garrison.guard.watching.book import Armed, Book
from garrison.guard.watching.places import PlaceArray, Table
from garrison.types import Array, FloatArray

logger = logging.getLogger(__name__)


class Weigher:
    """Asks every detector.

    Args:
        detectors: of the chain.
        book: knows whose alarms do nothing.
    """

    def __init__(self, detectors: Sequence[Armed], book: Book) -> None:
        self._detectors = tuple(detectors)
        self._book = book

    def __call__(
        self, public: Seen, secret: Seen, tables: Sequence[Table], shared: Sequence[Mapping[str, Array]]
    ) -> tuple[FloatArray, list[PlaceArray]]:
        """Weigh rows; the detectors remember them.

        Args:
            public, secret: the same rows, with the projection that everybody can know and with that which nobody can.
            tables, shared: what the detectors keep, one entry a detector.

        Returns:
            Nats, shape (rows, detectors); and pairs of callers who behave alike.

        Raises:
            GuardError: a detector that is not in shadow fails, or says something that is not finite.
        """
        by_detector = np.zeros((len(self._detectors), len(public.place)))
        links: list[PlaceArray] = []
        for i, armed in enumerate(self._detectors):
            detector, seen = armed.detector, secret if armed.detector.secret_projection else public
            try:
                by_detector[i] = detector.weigh(seen, tables[i].arrays, shared[i])
                pairs = detector.links(seen, tables[i].arrays, shared[i])
            except Exception as error:
                if not self._book.harmless(armed):
                    raise GuardError(f"the detector {armed.name} fails") from error
                words = "the detector %s fails, in shadow: it says nothing of %d rows"
                logger.exception(words, armed.name, len(public.place))
                by_detector[i] = 0.0
                continue
            if pairs is not None and len(pairs) and not armed.shadow:
                links.append(pairs)
        if not math.isfinite(by_detector.sum()):
            self._drop_unsound(by_detector)
        return by_detector.T, links

    def _drop_unsound(self, nats: FloatArray) -> None:
        """Evidence that is not finite: of a detector in shadow it counts for nothing, of another nothing may be answered."""
        for said, armed in zip(nats, self._detectors, strict=True):
            if np.isfinite(said).all():
                continue
            if not self._book.harmless(armed):
                raise GuardError(f"the evidence of the detector {armed.name} is not finite")
            logger.error("the evidence of the detector %s, in shadow, is not finite: it counts for nothing", armed.name)
            said[:] = 0.0
