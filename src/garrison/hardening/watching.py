"""Calibrates the detectors of `watch` on simulated honest callers, so that hardly any of them is alarmed.

    1 SHIFT     held-out rows as honest callers may send them (`shifts`), and rows as thieves do (`strange`)
    2 LOOK      what a detector sees of each
    3 FIT       each detector's parameters (`fits`)
    4 SIMULATE  many honest callers of 500 rows, through each detector's own code
    5 THRESHOLD so high that over all detectors together a stated share of those callers would be alarmed

Invariants: the service runs the very code that was simulated; a threshold is at least the highest sum that any simulated caller reached. Not covered: honest
callers who differ from all that were simulated, and callers of many more rows than 500, who have more chances to be alarmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from garrison.confidence import upper_limit
from garrison.guard.detectors.base import MOST_ROWS, Column, Detector, Seen
from garrison.guard.pipeline import Pipeline, Progress
from garrison.guard.watching.sketch import Sketch
from garrison.hardening.fits import FITTERS, USUAL, Honest
from garrison.hardening.scoring import Report, silent
from garrison.hardening.shifts import shifted
from garrison.hardening.strange import strange_rows
from garrison.types import Array, Batch, Caller, DefenseSpec, FloatArray, IntArray, ModelFacts, RawScores, Task

FEWEST_ROWS = 2_500
"""Held-out rows below which detectors are not calibrated."""
MOST_POOL_ROWS = 5_000
ROWS_A_CALLER = 500
CALLERS = 1_000
ALARMED = 0.003
"""Share of honest callers of 500 rows that may be alarmed, all detectors together."""
_TAIL = 0.05
_LEAST = 8.0
"""No threshold is lower: e^-8 is the chance that a fair sequential test is ever so wrong."""
_MARGIN = 1.25
"""Over the highest sum of a simulated caller: new rows are never quite like those that were held out."""
_CALLERS_AT_ONCE = 20
_MATRICES = 5
"""Projections such as `watch` may draw one, by which honest callers are simulated for the detectors that are shown it."""
_NARROW = 0.5
"""Of Dirichlet's distribution, from which the interests of every second caller are drawn."""
Ask = Callable[[dict[str, Array]], dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Watched:
    """What was found.

    Attributes:
        detectors: by name, as `watch` takes them: parameters with the threshold.
        metrics: for the manifest.
        notes: in plain English.
    """

    detectors: dict[str, dict[str, object]]
    metrics: dict[str, float]
    notes: tuple[str, ...] = ()


def why_unwatched(facts: ModelFacts, rows: int) -> str:
    """Why no detectors can be calibrated for such a model and so many held-out rows; "" where they can."""
    if facts.task is not Task.CLASSIFICATION:
        return f"detectors look at probabilities, and this model answers {facts.task.value}"
    if rows < FEWEST_ROWS:
        return f"no detectors: they need {FEWEST_ROWS} calibration rows, and there are {rows}"
    return ""


def calibrate_watch(
    ask: Ask,
    facts: ModelFacts,
    looks: tuple[DefenseSpec, ...],
    inputs: Mapping[str, Array],
    *,
    names: Sequence[str] = USUAL,
    callers: int = CALLERS,
    seed: int = 0,
    report: Report = silent,
) -> Watched:
    """See the module's docstring.

    Args:
        ask: the model's outputs for rows, by name.
        facts: of the model.
        looks: the defenses `projection` and the score, with their parameters.
        inputs: held-out honest rows, at least `FEWEST_ROWS`.
        names: of the detectors.
        callers: honest ones that are simulated.
        seed: of all that is drawn.
        report: told how far the work is.
    """
    rng = np.random.default_rng([seed, 1])
    # 1 SHIFT, 2 LOOK
    rows = len(next(iter(inputs.values())))
    kept = np.sort(rng.permutation(rows)[:MOST_POOL_ROWS])
    own = {name: x[kept] for name, x in inputs.items()}
    kinds = shifted(own, rng)
    strange = strange_rows(own, min(len(kept), 2_000), rng)
    total = len(kinds) + len(strange)
    seen = {}
    for number, (kind, x) in enumerate((kinds | strange).items()):
        report(kind, number / (total + 2))
        seen[kind] = look(ask, facts, looks, x)
    honest = Honest({k: seen[k] for k in kinds}, {k: seen[k] for k in strange}, len(facts.labels), seed)
    hidden = [_sketched(seen, kinds | strange, facts, number) for number in range(_MATRICES)]
    # 3 FIT, 4 SIMULATE, 5 THRESHOLD
    report("honest callers", total / (total + 2))
    first = Honest({k: hidden[0][k] for k in kinds}, {k: hidden[0][k] for k in strange}, len(facts.labels), seed)
    detectors = fitted(honest, names, first)
    pools = [{k: looks[k] for k in kinds} for looks in hidden]
    return thresholds(
        detectors,
        simulated_callers(honest, callers, rng),
        secret=simulated_callers(honest, callers, np.random.default_rng([seed, 5]), pools=pools),
    )


def fitted(honest: Honest, names: Sequence[str] = USUAL, secret: Honest | None = None) -> dict[str, Detector]:
    """The detectors of these names that such data allow, with infinite thresholds.

    Args:
        secret: the same rows by another projection, for those who are shown one that nobody knows.
    """
    found = {name: FITTERS[name](honest) for name in names}
    for name, detector in found.items():
        if secret is not None and detector is not None and detector.secret_projection:
            found[name] = FITTERS[name](secret)
    return {name: detector for name, detector in found.items() if detector is not None}


def _sketched(
    seen: Mapping[str, Seen], rows: Mapping[str, Mapping[str, Array]], facts: ModelFacts, number: int
) -> dict[str, Seen]:
    """The same by a matrix such as `watch` draws one, since nobody knows which it will be."""
    width = next(iter(seen.values())).projection.shape[1]
    sketch = Sketch(facts, b"%d" % number, width)
    return {kind: msgspec.structs.replace(look, projection=sketch(rows[kind])) for kind, look in seen.items()}


def look(ask: Ask, facts: ModelFacts, looks: tuple[DefenseSpec, ...], inputs: dict[str, Array]) -> Seen:
    """What detectors see of rows: by the chain's own code."""
    raw = ask(inputs)
    rows = len(next(iter(inputs.values())))
    pipeline = Pipeline((*looks, DefenseSpec(name="release")), facts)
    progress = Progress.begin(Batch(inputs, np.zeros(rows, dtype=np.intp), (Caller("owner"),), (-1,)))
    pipeline.inspect(progress)
    pipeline.answer(progress, RawScores(raw["probabilities"], raw.get("logits"), None, raw.get(facts.feature_score)))
    signals, values = progress.signals, raw["probabilities"]
    return Seen(
        place=np.zeros(rows, dtype=np.intp),
        asked=np.zeros(rows, dtype=np.int64),
        projection=signals["projection"].astype(np.float32),
        confidence=signals["confidence"].astype(np.float32),
        probability=values.max(axis=1).astype(np.float32),
        top=values.argmax(axis=1),
    )


def simulated_callers(
    honest: Honest,
    callers: int,
    rng: np.random.Generator,
    rows: int = ROWS_A_CALLER,
    pools: Sequence[Mapping[str, Seen]] = (),
) -> list[Seen]:
    """Callers of so many rows, drawn without replacement; the kinds of shift take turns, and every second caller prefers some classes.

    Args:
        pools: the same rows by several projections, which take turns too; none for those of `honest`.
    """
    kinds, given = list(honest.pools), pools or [honest.pools]
    top = honest.plain.top
    rows = min(rows, len(top))
    found = []
    for number in range(callers):
        wish = np.ones(honest.classes)
        if number // len(kinds) % 2:
            wish = rng.dirichlet(np.full(honest.classes, _NARROW)) + 1e-6
        order = np.argsort(rng.exponential(size=len(top)) / wish[top], kind="stable")[:rows]
        pool = given[number // (2 * len(kinds)) % len(given)]
        found.append(take(pool[kinds[number % len(kinds)]], rng.permutation(order)))
    return found


def take(pool: Seen, rows: IntArray) -> Seen:
    """Some of the rows, as if one caller had asked them, and nothing before."""
    return Seen(
        place=np.zeros(len(rows), dtype=np.intp),
        asked=np.arange(len(rows), dtype=np.int64),
        projection=pool.projection[rows],
        confidence=pool.confidence[rows],
        probability=pool.probability[rows],
        top=pool.top[rows],
    )


def thresholds(
    detectors: Mapping[str, Detector], callers: list[Seen], alarmed: float = ALARMED, secret: Sequence[Seen] = ()
) -> Watched:
    """Thresholds from how high honest callers come.

    Beyond what was seen, the highest sum of a caller is taken to fall off exponentially, as that of a cumulative sum does (Siegmund 1985).

    Args:
        detectors: by name.
        callers: honest ones.
        alarmed: share of callers that may be alarmed, all detectors together.
        secret: as many honest callers by projections that nobody knows, for the detectors that are shown such; none for the same callers.
    """
    share = alarmed / max(1, len(detectors))
    peaks, made = {}, {}
    for name, detector in detectors.items():
        shown = list(secret) if detector.secret_projection and secret else callers
        peaks[name] = sums(detector, shown).max(axis=1)
        made[name] = msgspec.structs.replace(detector, threshold=_threshold(peaks[name], share))
    over = np.zeros(len(callers), dtype=np.bool_)
    for name, peak in peaks.items():
        over |= peak >= made[name].threshold
    metrics = {
        "watch_callers": float(len(callers)),
        "watch_rows_a_caller": float(max((len(c.top) for c in callers), default=0)),
        "watch_alarmed": float(over.sum()),
        "watch_alarmed_high": upper_limit(int(over.sum()), len(callers)),
        "watch_alarmed_asked": alarmed,
    }
    return Watched({name: msgspec.to_builtins(d) for name, d in made.items()}, metrics)


def _threshold(peaks: FloatArray, share: float) -> float:
    start = float(np.quantile(peaks, 1 - _TAIL))
    beyond = peaks[peaks > start] - start
    scale = float(beyond.mean()) if len(beyond) else 0.0
    extrapolated = start + scale * max(0.0, math.log(_TAIL / share))
    return math.ceil(10 * max(_LEAST, _MARGIN * max(extrapolated, float(peaks.max())))) / 10


def sums(detector: Detector, callers: list[Seen]) -> FloatArray:
    """The cumulative sum max(0, S + nats) after each row, shape (callers, rows), by the detector's own code. Callers are equally long."""
    found = np.zeros((len(callers), max((len(c.top) for c in callers), default=0)))
    for start in range(0, len(callers), _CALLERS_AT_ONCE):
        group = callers[start : start + _CALLERS_AT_ONCE]
        found[start : start + len(group)] = nats(detector, group)
    total = np.zeros(len(callers))
    for row in range(found.shape[1]):
        total = np.maximum(0.0, total + found[:, row])
        found[:, row] = total
    return found


def nats(detector: Detector, callers: list[Seen]) -> FloatArray:
    """What the detector says of each row of callers who ask in turn, shape (callers, rows)."""
    width, rows = callers[0].projection.shape[1], len(callers[0].top)
    columns = {name: _filled(column, len(callers)) for name, column in detector.columns(width).items()}
    shared = {name: _filled(column) for name, column in detector.shares(width).items()}
    found = np.zeros((len(callers), rows))
    for start in range(0, rows, MOST_ROWS):
        parts = [take_rows(caller, slice(start, start + MOST_ROWS), place) for place, caller in enumerate(callers)]
        seen = joined(parts)
        said = detector.weigh(seen, columns, shared)
        detector.links(seen, columns, shared)
        found[:, start : start + MOST_ROWS] = said.reshape(len(callers), -1)
    return found


def take_rows(seen: Seen, rows: slice, place: int) -> Seen:
    """A part of a caller's rows, at a place."""
    part = {name: getattr(seen, name)[rows] for name in ("asked", "projection", "confidence", "probability", "top")}
    return Seen(place=np.full(len(part["top"]), place, dtype=np.intp), **part)


def joined(parts: list[Seen]) -> Seen:
    """One after the other."""
    return Seen(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in Seen.__struct_fields__})


def _filled(column: Column, entries: int | None = None) -> Array:
    shape = column.shape if entries is None else (entries, *column.shape)
    return np.full(shape, column.fill, dtype=column.dtype)
