"""The chain in numpy, around one run of the model: the reference for every other form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from garrison.guard.pipeline import Pipeline, Progress
from garrison.types import Array, Batch, FloatArray, RawScores, Released


class NumpyForm:
    """Runs batches through the chain, phase by phase. What ADMIT and INSPECT refuse is not computed.

    Args:
        pipeline: the chain.
        run: the model, on rows that were admitted.
    """

    def __init__(self, pipeline: Pipeline, run: Callable[[dict[str, Array]], RawScores]) -> None:
        self._pipeline = pipeline
        self._run = run

    def _again(self, inputs: dict[str, Array]) -> FloatArray:
        return self._run(inputs).values

    def __call__(self, batch: Batch) -> tuple[Progress, Released]:
        """ADMIT to RELEASE over a batch. Rows of refused requests come back as zeros."""
        everyone = Progress.begin(batch)
        self._pipeline.admit(everyone)
        self._pipeline.inspect(everyone)
        progress, requests = everyone.admitted()
        if not requests:
            return everyone, Released({})
        raw = self._run(progress.batch.inputs)
        wrong, again = raw.misinformation, self._again
        self._pipeline.answer(
            progress, RawScores(raw.values, raw.logits, wrong, raw.feature_score, raw.squeezed, again)
        )
        released = self._pipeline.release(progress)
        return (progress, released) if progress is everyone else spread(everyone, requests, progress, released)


def spread(
    everyone: Progress, requests: tuple[int, ...], part: Progress, released: Released
) -> tuple[Progress, Released]:
    """Put the results of the admitted requests back among all requests."""
    rows = np.flatnonzero(np.isin(everyone.batch.request_of_row, requests))
    for i, request in enumerate(requests):
        everyone.refused[request], everyone.detail[request] = part.refused[i], part.detail[i]
    everyone.replaced[rows] = part.replaced
    everyone.uncertain[rows] = part.uncertain
    for name, counts in part.shadow.items():
        everyone.shadow.setdefault(name, np.zeros(everyone.batch.requests))[list(requests)] = counts

    def widen(x: Array) -> Array:
        wide = np.zeros((everyone.batch.rows, *x.shape[1:]), dtype=x.dtype)
        wide[rows] = x
        return wide

    if part.raw is not None:
        everyone.raw = RawScores(widen(part.raw.values))  # for RECORD, which minds no refused row
    return everyone, Released({n: widen(x) for n, x in released.outputs.items()}, widen(released.uncertain))
