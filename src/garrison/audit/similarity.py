"""Figure 5 of the seed paper: how much a guard changes of what is answered, over the threshold tau.

Similarity is the share of inputs on which the served first class equals that of the undefended f, for inputs of the model's own
kind and for others, with Adaptive Misinformation and without. The raw scores are computed once; the guard's own pipeline runs on
them for each tau.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.audit import metrics
from garrison.audit.targets import ServiceTarget
from garrison.guard.pipeline import Pipeline, Progress
from garrison.types import Array, Batch, BoolArray, Caller, DefenseSpec, FloatArray, RawScores

MISINFORMATION = frozenset(f"{way}-misinformation" for way in ("adaptive", "deceptive", "label-preserving"))
CONFIDENCE = "confidence"
STEPS = 21
STAND_IN_KEY = bytes(32)
"""Used where the owner's key is not at hand. Which wrong class is given changes with the key; how often does not."""
Kind = Literal["in-distribution", "out-of-distribution"]
Against = Literal["undefended", "unguarded"]


class SimilarityPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the figure.

    Attributes:
        rows: which inputs.
        against: "undefended" is the plain model, "unguarded" the sealed model without its guard.
        misinformation: whether Adaptive Misinformation is on; without it tau has no effect and is None.
        value, low, high: share of inputs with the same first class; bootstrap over rows, 95 %.
        calibrated: whether tau is the one that is signed.
    """

    rows: Kind
    against: Against
    misinformation: bool
    tau: float | None
    value: float
    low: float
    high: float
    calibrated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """Rows of one kind, what the unguarded model says of them, and the first classes that answers are compared with."""

    kind: Kind
    batch: Batch
    raw: RawScores
    others: dict[Against, npt.NDArray[np.intp]]


def signed_tau(chain: Sequence[DefenseSpec]) -> float | None:
    """The threshold of Adaptive Misinformation in a chain, None where it has none."""
    found = next((spec.parameters.get("tau") for spec in chain if spec.name in MISINFORMATION), None)
    return None if found is None else float(found)


def similarity_curves(
    reference: ServiceTarget,
    rows: dict[Kind, Array],
    undefended: Callable[[Array], FloatArray] | None,
    *,
    key: bytes | None = None,
    taus: Sequence[float] = (),
) -> tuple[SimilarityPoint, ...]:
    """The points of the figure; none where the signed guard has no Adaptive Misinformation.

    Args:
        reference: the sealed model without its guard.
        rows: inputs by kind.
        undefended: the plain model's probabilities, where it is at hand.
        key: the misinformation key.
        taus: thresholds; chosen by the range of the score where empty. The signed one is always added.
    """
    chain = reference.service.manifest.guard
    calibrated = signed_tau(chain)
    if calibrated is None:
        return ()
    scored = [_score(reference, kind, x, undefended) for kind, x in rows.items()]
    found: list[SimilarityPoint] = []
    for tau in sorted({*(taus or _spread(reference, chain, scored)), calibrated}):
        pipeline = Pipeline(_with_tau(chain, tau), reference.service.facts, key or STAND_IN_KEY)
        for s in scored:
            found += _points(_answered(pipeline, s), s, tau=tau, calibrated=tau == calibrated)
    for s in scored:
        found += _points(s.raw.values, s, tau=None, calibrated=False)
    return tuple(found)


def _score(reference: ServiceTarget, kind: Kind, x: Array, undefended: Callable[[Array], FloatArray] | None) -> _Scored:
    inputs = reference.named_rows(x)
    batch = Batch(inputs, np.zeros(len(x), dtype=np.intp), (Caller("audit"),), (-1,))
    raw = reference.service.raw(inputs)
    others: dict[Against, npt.NDArray[np.intp]] = {"unguarded": raw.values.argmax(axis=1)}
    if undefended is not None:
        others["undefended"] = undefended(x).argmax(axis=1)
    return _Scored(kind, batch, raw, others)


def left_alone(reference: ServiceTarget, x: Array) -> BoolArray:
    """Rows that the signed guard answers with the model's own answer, shape (rows,); whichever key it holds.

    Args:
        reference: the sealed model without its guard.
        x: (rows, *shape).
    """
    inputs, rows = reference.named_rows(x), len(x)
    pipeline = Pipeline(reference.service.manifest.guard, reference.service.facts, STAND_IN_KEY)
    # One request a row: a refused row must not take others with it.
    batch = Batch(inputs, np.arange(rows, dtype=np.intp), (Caller("audit"),) * rows, (-1,) * rows)
    progress = Progress.begin(batch)
    pipeline.inspect(progress)  # later defenses may read what it gives
    pipeline.answer(progress, reference.service.raw(inputs))
    refused = np.array([code is not None for code in progress.refused])
    found: BoolArray = ~(progress.replaced | refused)
    return found


def _with_tau(chain: Sequence[DefenseSpec], tau: float) -> tuple[DefenseSpec, ...]:
    def changed(spec: DefenseSpec) -> DefenseSpec:
        if spec.name not in MISINFORMATION:
            return spec
        return DefenseSpec(name=spec.name, parameters=spec.parameters | {"tau": tau})

    return tuple(changed(spec) for spec in chain)


def _run(pipeline: Pipeline, scored: _Scored) -> Progress:
    progress = Progress.begin(scored.batch)
    pipeline.inspect(progress)
    pipeline.answer(progress, scored.raw)
    return progress


def _answered(pipeline: Pipeline, scored: _Scored) -> FloatArray:
    answer = _run(pipeline, scored).answer
    return scored.raw.values if answer is None else answer


def _spread(reference: ServiceTarget, chain: Sequence[DefenseSpec], scored: Sequence[_Scored]) -> list[float]:
    """Thresholds over the whole range of the score: 0 to 1 for a probability, else from the least to the greatest score."""
    pipeline = Pipeline(chain, reference.service.facts, STAND_IN_KEY)
    scores = np.concatenate([_run(pipeline, s).signals[CONFIDENCE] for s in scored])
    low, high = float(scores.min()), float(scores.max())
    if low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    return [round(float(tau), 6) for tau in np.linspace(low, high, STEPS)]


def _points(answer: FloatArray, scored: _Scored, *, tau: float | None, calibrated: bool) -> list[SimilarityPoint]:
    first = answer.argmax(axis=1)
    found = []
    for against, other in scored.others.items():
        e = metrics.agreement(first, other)
        found.append(
            SimilarityPoint(
                rows=scored.kind,
                against=against,
                misinformation=tau is not None,
                tau=tau,
                value=e.value,
                low=e.value if e.low is None else e.low,
                high=e.value if e.high is None else e.high,
                calibrated=calibrated,
            )
        )
    return found
