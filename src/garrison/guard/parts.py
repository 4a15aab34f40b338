"""Some requests of a batch, and a whole verdict from those of its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from garrison.guard.base import REFUSE, RowDefense, Verdict, View
from garrison.types import Batch, BoolArray, FloatArray, RawScores


def narrow(view: View, rows: np.ndarray[Any, np.dtype[np.intp]], requests: tuple[int, ...]) -> View:
    """The view of some rows, which must be all rows of the given requests."""
    noise, raw = view.noise, view.raw
    batch = narrow_batch(view.batch, rows, requests)
    return msgspec.structs.replace(
        view,
        batch=batch,
        raw=None if raw is None else _narrow_raw(raw, rows),
        answer=None if view.answer is None else view.answer[rows],
        uncertain=None if view.uncertain is None else view.uncertain[rows],
        signals={name: signal[rows] for name, signal in view.signals.items()},
        noise=None if noise is None else lambda inner: noise(rows[inner]),
        refused=tuple(view.refused[r] for r in requests) if view.refused else (),
    )


def narrow_batch(batch: Batch, rows: np.ndarray[Any, np.dtype[np.intp]], requests: tuple[int, ...]) -> Batch:
    """The part of a batch that belongs to the given requests."""
    number = np.full(batch.requests, -1, dtype=np.intp)
    number[list(requests)] = np.arange(len(requests))
    return Batch(
        {name: x[rows] for name, x in batch.inputs.items()},
        number[batch.request_of_row[rows]],
        tuple(batch.callers[r] for r in requests),
        tuple(batch.remaining[r] for r in requests),
        tuple(batch.fresh[r] for r in requests) if batch.fresh else (),
        tuple(batch.worked[r] for r in requests) if batch.worked else (),
    )


def _narrow_raw(raw: RawScores, rows: np.ndarray[Any, np.dtype[np.intp]]) -> RawScores:
    wrong: Callable[[Any], FloatArray] | None = raw.misinformation
    return RawScores(
        raw.values[rows],
        None if raw.logits is None else raw.logits[rows],
        None if wrong is None else lambda inner: wrong(rows[inner]),
        None if raw.feature_score is None else raw.feature_score[rows],
        None if raw.squeezed is None else raw.squeezed[rows],
        raw.again,
    )


def stitch(defense: RowDefense, view: View, parts: Sequence[Verdict | None]) -> Verdict:
    """One verdict from one a request, None for those that failed. Their rows are refused and get NaN signals, which fail closed."""
    rows = view.batch.rows
    codes = np.full(rows, REFUSE)
    uncertain = np.zeros(rows, dtype=np.bool_)
    values = None if view.answer is None else view.answer.copy()
    failed: BoolArray = np.array([part is None for part in parts])[view.batch.request_of_row]
    signals = {name: np.full(rows, np.nan) for name in defense.gives}
    if defense.only_signals:  # where it changes nothing it gives none
        signals = {name: np.where(failed, np.nan, view.signals[name]) for name in defense.gives}
    reasons: dict[int, tuple[str, str]] = {}
    for request, part in enumerate(parts):
        if part is None:
            continue
        if part.reasons:
            reasons[request] = part.reasons[0]
        where = view.batch.request_of_row == request
        codes[where] = part.codes
        if values is not None and part.values is not None:
            values[where] = part.values
        if part.uncertain is not None:
            uncertain[where] = part.uncertain
        for name, signal in part.signals.items():
            if signals[name].shape[1:] != signal.shape[1:]:
                signals[name] = np.full((rows, *signal.shape[1:]), np.nan)
            signals[name][where] = signal
    return Verdict(codes, values, uncertain, signals, reasons)
