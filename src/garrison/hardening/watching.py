"""Calibrates the detectors of `watch` on simulated honest callers, so that hardly any of them is alarmed.

    1 SHIFT     held-out rows as honest callers may send them (`shifts`), and rows as thieves do (`strange`)
    2 LOOK      what a detector sees of each
    3 FIT       each detector's parameters (`fits`)
    4 SIMULATE  many honest callers of 500 rows, through each detector's own code, fitted on other rows than theirs
    5 THRESHOLD so high that of 1,000 such callers hardly ever one would be alarmed, over all detectors together

Detectors say less against rows that they were fitted on than against new ones. So the rows are cut into halves: callers ask rows of one, and detectors that were fitted on the other hear
them. What is signed is fitted on all rows (cross-validation: Stone 1974).

Invariants: the service runs the very code that was simulated; a threshold is at least the highest sum that any simulated caller reached. Not covered: honest
callers who differ from all that were simulated, and callers of many more rows than 500, who have more chances to be alarmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from garrison.confidence import upper_limit
from garrison.guard.defenses.watch import detector_kind
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
CALLERS = 4_000
ALARMED = 5e-5
"""Share of honest callers of 500 rows that may be alarmed, all detectors together: of 1,000 then none is, nineteen times in twenty."""
_SPLITS = 4
"""Times that the rows are cut into halves; how well one half stands for the other is luck."""
_TAIL = 0.02
"""Share of the simulated callers, the highest, who tell how sums fall off."""
_SCALE = 1.0
"""Nats in which the share of honest callers who come so high is taken to fall to 1 / e, at least. Nats promise that, being logarithms of likelihood ratios whose mean over honest rows
is at most 1; that sums fall off faster is not believed of the few callers who came high."""
_LEAST = 8.0
"""No threshold is lower: e^-8 is the chance that a fair sequential test is ever so wrong."""
_CALLERS_AT_ONCE = 20
_MATRICES = 5
"""Projections such as `watch` may draw one, by which honest callers are simulated for the detectors that are shown it."""
_NARROW = 0.5
"""Of Dirichlet's distribution, from which the interests of every second caller are drawn."""
_HIGH = 30.0
"""Nats; the share of honest callers that is asked for gives some 12 where sums fall off as they should."""
_MISSING = "these detectors are left out, the calibration rows do not allow them: {}"
_LATE = "these detectors will name thieves late, or never, because honest rows look like a thief's to them, as rows do that are few or repeat each other: {}"
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
    hidden = [_sketched(seen, kinds | strange, facts, number) for number in range(_MATRICES)]
    known, *secret = (
        Honest({k: looked[k] for k in kinds}, {k: looked[k] for k in strange}, len(facts.labels), seed)
        for looked in (seen, *hidden)
    )
    # 3 FIT, 4 SIMULATE, 5 THRESHOLD
    report("honest callers", total / (total + 2))
    found = thresholds(fitted(known, names, secret[0]), crossed(known, secret, names, callers, seed))
    return replace(found, notes=_notes(names, found.detectors))


def _notes(names: Sequence[str], found: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
    """What the owner should know of detectors that were asked for."""
    missing = [name for name in names if name not in found]
    above = {name: msgspec.convert(detector["threshold"], float) for name, detector in found.items()}
    late = [f"{name} (from {nats:g} nats on)" for name, nats in above.items() if nats > _HIGH]
    said = ((_MISSING, missing), (_LATE, late))
    return tuple(words.format(", ".join(which)) for words, which in said if which)


def crossed(
    known: Honest, secret: Sequence[Honest], names: Sequence[str], callers: int, seed: int
) -> dict[str, FloatArray]:
    """The highest sum of honest callers, by detector, shape (callers,): of rows of one half of those that are known, as a detector hears them that was fitted on the other half.

    A detector is left out where a half of the rows is too few for it.

    Args:
        known: honest rows.
        secret: the same by projections that nobody knows, at least one, for the detectors that are shown such.
        names: of the detectors.
        callers: how many, in all.
        seed: of what is drawn.
    """
    rng = np.random.default_rng([seed, 5])
    found = []
    for _ in range(_SPLITS):
        halves = np.array_split(rng.permutation(len(known.plain.top)), 2)
        for own, others in (halves, halves[::-1]):
            detectors = fitted(known.part(others), names, secret[0].part(others))
            asked, hidden = known.part(own), [one.part(own).pools for one in secret]
            count = max(1, callers // (2 * _SPLITS))
            plainly = simulated_callers(asked, count, rng)
            secretly = simulated_callers(asked, count, rng, pools=hidden)
            found.append({n: highest(d, secretly if d.secret_projection else plainly) for n, d in detectors.items()})
    return {name: np.concatenate([part[name] for part in found]) for name in names if all(name in p for p in found)}


def fitted(honest: Honest, names: Sequence[str] = USUAL, secret: Honest | None = None) -> dict[str, Detector]:
    """The detectors of these names that such data allow, with infinite thresholds.

    Args:
        secret: the same rows by another projection, for those who are shown one that nobody knows.
    """
    found = {}
    for name in names:
        shown = secret if secret is not None and detector_kind(name).secret_projection else honest
        detector = FITTERS[name](shown)
        if detector is not None:
            found[name] = detector
    return found


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


def thresholds(detectors: Mapping[str, Detector], peaks: Mapping[str, FloatArray], alarmed: float = ALARMED) -> Watched:
    """Thresholds from how high honest callers come.

    Beyond what was seen, the highest sum of a caller is taken to fall off exponentially, as that of a cumulative sum does (Siegmund 1985).

    Args:
        detectors: by name; left out where nothing is known of how high honest callers come.
        peaks: the highest sum of each honest caller, shape (callers,), by detector.
        alarmed: share of callers that may be alarmed, all detectors together.
    """
    share = alarmed / max(1, len(peaks))
    made = {
        name: msgspec.structs.replace(detector, threshold=_threshold(peaks[name], share))
        for name, detector in detectors.items()
        if name in peaks
    }
    callers = max(map(len, peaks.values()), default=0)
    over = np.zeros(callers, dtype=np.bool_)
    for name, detector in made.items():
        over |= peaks[name] >= detector.threshold
    metrics = {
        "watch_callers": float(callers),
        "watch_rows_a_caller": float(ROWS_A_CALLER),
        "watch_alarmed": float(over.sum()),
        "watch_alarmed_high": upper_limit(int(over.sum()), callers),
        "watch_alarmed_asked": alarmed,
    }
    return Watched({name: msgspec.to_builtins(d) for name, d in made.items()}, metrics)


def _threshold(peaks: FloatArray, share: float) -> float:
    start = float(np.quantile(peaks, 1 - _TAIL))
    beyond = peaks[peaks > start] - start
    scale = max(_SCALE, float(beyond.mean()) if len(beyond) else 0.0)
    extrapolated = start + scale * max(0.0, math.log(_TAIL / share))
    return math.ceil(10 * max(_LEAST, extrapolated, float(peaks.max()))) / 10


def highest(detector: Detector, callers: list[Seen]) -> FloatArray:
    """The highest sum that each caller comes to, shape (callers,). Callers are equally long."""
    found: FloatArray = sums(detector, callers).max(axis=1)
    return found


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
