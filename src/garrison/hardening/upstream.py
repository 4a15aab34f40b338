"""Hardens the guard of a model that another Open Inference Protocol server runs, from its answers alone.

    1 READ       what the server says of the model
    2 HOLD OUT   rows that the model has not seen
    3 ASK        its answers on those rows
    4 CALIBRATE  tau to the stated benign loss, the shape of honest answers
    5 MISINFORM  f', a network of its own: the model's features cannot be had
    6 WATCH      detectors, on simulated honest callers with benign shift, whose rows are asked too
    7 CHAIN      the defenses in order, as they will be signed
    8 MEASURE    what honest rows lose and outliers get, through that very chain

As `garrison.hardening.harden`, but for READ and ASK. No more than `Wish.most_rows` rows are asked at any of these steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from garrison.bundle.manifest import UpstreamEntry
from garrison.errors import CalibrationError, UnavailableError, UnsupportedModelError, UpstreamError
from garrison.hardening.calibration import calibrate, confidence_of
from garrison.hardening.data import Part, Rows
from garrison.hardening.drift import with_drift
from garrison.hardening.harden import (
    WATCH,
    Options,
    Result,
    describe_hardened,
    draw_outliers,
    guard_chain,
    hold_out,
    notes_of,
    part,
    train_own_network,
    watch_of,
)
from garrison.hardening.measuring import Victim, measure
from garrison.hardening.ranges import input_specs
from garrison.hardening.scoring import Report, silent
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.types import DATATYPES, NUMPY_DTYPES, Array, FloatArray
from garrison.upstream.http import Connections, connect
from garrison.upstream.model import Description, UpstreamModel, describe, fits, softmax
from garrison.upstream.target import Target

ROWS_A_REQUEST = 64
ATTEMPTS = 4
SHIFTED_KINDS, STRANGE_ROWS = 5, 6_000
"""What is asked for detectors: each held-out row as it is and shifted in so many kinds at most, and so many strange rows."""
_FIRST_PAUSE_SECONDS = 0.5
_TRIAL_ROWS = 3
_TRIAL_TOLERANCE = 1e-4

Inputs = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which model of a server, and how it is asked.

    Attributes:
        model, version: as the server names them; version "" for the one that it gives by default.
        output: the tensor with the answer; "" where the model has one alone.
        inputs: names of the model's inputs, for a server that does not tell them; empty for those of the data.
        most_rows: rows that are asked in one step at most; the others are left out.
        rows_a_request: rows in one request at most.
    """

    model: str
    version: str = ""
    output: str = ""
    inputs: tuple[str, ...] = ()
    most_rows: int = 20_000
    rows_a_request: int = ROWS_A_REQUEST


@dataclass(frozen=True, slots=True)
class UpstreamVictim(Victim):
    """A victim that is asked. What it was asked before, it remembers.

    Attributes:
        ask: rows in, what the tensor with the answer holds out.
        gives: "probabilities" or "logits".
    """

    ask: Callable[[Inputs, Report], FloatArray] | None = None
    gives: str = "probabilities"
    asked: list[tuple[Inputs, dict[str, Array]]] = field(default_factory=list)

    def answers(self, inputs: Inputs, report: Report = silent) -> dict[str, Array]:
        """Probabilities, and logits where the model gives them."""
        for known, found in self.asked:
            if known is inputs:
                return dict(found)
        values = np.zeros((0, 0)) if self.ask is None else self.ask(inputs, report)
        found = {"probabilities": values} if self.gives == "probabilities" else {"probabilities": softmax(values)}
        if self.gives == "logits":
            found["logits"] = values
        self.asked.append((inputs, found))
        return dict(found)

    def unremembered(self, inputs: Inputs) -> dict[str, Array]:
        """As `answers`, for rows that are asked once."""
        try:
            return self.answers(inputs)
        finally:
            self.asked[:] = [pair for pair in self.asked if pair[0] is not inputs]

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """All outputs, that of f' among them."""
        return self.answers(inputs) | self.wrong(inputs)


def harden_upstream(
    target: Target,
    wish: Wish,
    data: Rows,
    calibration: Rows | None = None,
    outliers: Rows | None = None,
    options: Options | None = None,
    report: Report = silent,
    limits: Limits = DEFAULT_LIMITS,
) -> Result:
    """See the module's docstring.

    Args:
        target: where the model runs.
        wish: which model.
        data: the rows that f' is trained on; a fifth of them is held out where `calibration` is None.
        calibration: rows that the model has not seen.
        outliers: rows that are not the model's business, to measure on; None to have some drawn.
        options: see `garrison.hardening.harden.Options`; `output` says what the answer is.
        report: told how far the work is.

    Raises:
        UnavailableError: the server cannot be reached, or does not answer after several attempts.
        UpstreamError: it gives no answer that can be used.
        UnsupportedModelError: its model is not one that can be guarded.
        CalibrationError: the data do not fit it, or do not allow a calibration.
    """
    options = options or Options()
    # 1 READ
    report("asking the server about its model", 0.0)
    connections = connect(target, limits)
    try:
        return _harden(connections, wish, (data, calibration, outliers), options, report, limits)
    finally:
        connections.close()


def _harden(
    connections: Connections,
    wish: Wish,
    files: tuple[Rows, Rows | None, Rows | None],
    options: Options,
    report: Report,
    limits: Limits,
) -> Result:
    data, calibration, outliers = files
    described = describe(connections, wish.model, wish.version, limits.upstream_seconds)
    wanted = {name: (datatype, shape) for name, datatype, shape in _wanted(described, wish, data)}
    # 2 HOLD OUT
    training, held_out = hold_out(data, calibration, wanted, options.seed)
    held_out = _bounded(held_out, wish.most_rows, options.seed)
    entry, victim = _victim(connections, described, wish, (training, held_out), files, options, limits)
    # 3 ASK, 4 CALIBRATE
    found = victim.answers(held_out.inputs, part(report, "asking", 0.05, 0.3))
    confidence = confidence_of(options.score, found["probabilities"], found.get("logits"))
    fitted = calibrate(found["probabilities"], confidence, held_out.y, benign_loss=options.benign_loss)
    # 5 MISINFORM
    if options.on_ood == "misinform":
        training = _labelled(_bounded(training, wish.most_rows, options.seed), victim, part(report, "asking", 0.3, 0.5))
        wrong = train_own_network(victim, training, options, part(report, "training", 0.5, 0.8))
        victim = replace(victim, misinformation=wrong)
    # 6 WATCH
    shown = _bounded(held_out, max(0, wish.most_rows - STRANGE_ROWS) // SHIFTED_KINDS, options.seed)
    watched = watch_of(victim, shown, options, part(report, "detectors", 0.8, 0.9), victim.unremembered)
    # 7 CHAIN
    chain, drifting = guard_chain(fitted, options, victim, watched.detectors), dict[str, float]()
    if options.drift:
        chain, drifting = with_drift(chain, victim.facts(), held_out.inputs, found["probabilities"], seed=options.seed)
    # 8 MEASURE
    report("measuring", 0.9)
    outside = draw_outliers(outliers, wanted, victim, held_out, options.seed)
    answering = tuple(spec for spec in chain if spec.name != WATCH)  # all rows at once are no caller
    metrics = measure(victim, answering, fitted, held_out, outside) | watched.metrics | drifting
    digests = {"training": data.sha256} | ({} if calibration is None else {"calibration": calibration.sha256})
    description = describe_hardened(victim, chain, metrics, digests, options, entry)
    report("", 1.0)
    notes = notes_of(fitted, metrics, in_sample=calibration is None) + watched.notes
    return Result(description, None, victim.misinformation, fitted, notes)


def _wanted(described: Description, wish: Wish, data: Rows) -> list[tuple[str, str, tuple[int | None, ...]]]:
    """Name, datatype and shape of one row of each input: as the server says, or as the data are where it says nothing."""
    arrays = data.inputs
    if described.inputs and len(described.inputs) == 1 and list(arrays) == ["x"]:
        arrays = {described.inputs[0].name: arrays["x"]}
    elif wish.inputs and len(wish.inputs) == len(arrays):
        arrays = dict(zip(wish.inputs, arrays.values(), strict=True))
    if not described.inputs:
        return [(name, DATATYPES[x.dtype], x.shape[1:]) for name, x in arrays.items()]
    found: list[tuple[str, str, tuple[int | None, ...]]] = []
    for tensor in described.inputs:
        x = arrays.get(tensor.name)
        if x is None or tensor.datatype not in NUMPY_DTYPES:
            raise CalibrationError(
                f"the model takes {[(t.name, t.datatype, t.shape) for t in described.inputs]}, the data hold {sorted(arrays)}"
            )
        if not fits(tensor, tensor.name, NUMPY_DTYPES[tensor.datatype], x.shape[1:]):
            raise CalibrationError(
                f"input {tensor.name!r}: the model takes {tensor.shape}, the data hold rows of {x.shape[1:]}"
            )
        found.append((tensor.name, tensor.datatype, x.shape[1:]))
    return found


def _victim(
    connections: Connections,
    described: Description,
    wish: Wish,
    parts: tuple[Part, Part],
    files: tuple[Rows, Rows | None, Rows | None],
    options: Options,
    limits: Limits,
) -> tuple[UpstreamEntry, UpstreamVictim]:
    """How the model is asked, found out on a few rows, and the model behind it."""
    training, held_out = parts
    if options.output not in ("auto", "logits", "probabilities"):
        raise UnsupportedModelError(
            f"a guard for another server's model needs probabilities or logits, not {options.output}"
        )
    entry, values, binary = _try(connections, described, wish, held_out.inputs, options, limits)
    given = [options.labels, *(rows.labels for rows in files[:2] if rows is not None), described.labels or None]
    labels = next((names for names in given if names is not None), None) or tuple(map(str, range(values.shape[1])))
    if len(labels) != values.shape[1] or len(set(labels)) != len(labels):
        raise CalibrationError(
            f"expected {values.shape[1]} different labels, one a class, found {len(labels)}: {labels}"
        )
    model = UpstreamModel(
        connections,
        entry,
        outputs=values.shape[1],
        datatype=values.dtype,
        binary=binary,
        seconds=limits.upstream_seconds,
    )
    both = {name: np.concatenate([x, held_out.inputs[name]]) for name, x in training.inputs.items()}
    return entry, UpstreamVictim(
        model=b"",
        outputs=("probabilities", "logits") if entry.gives == "logits" else ("probabilities",),
        inputs=input_specs(both, options.bounds),
        labels=labels,
        datatype=values.dtype,
        threads=options.threads,
        ask=lambda inputs, report: _ask_all(model, inputs, wish.rows_a_request, report),
        gives=entry.gives,
    )


def _try(
    connections: Connections,
    described: Description,
    wish: Wish,
    inputs: Inputs,
    options: Options,
    limits: Limits,
) -> tuple[UpstreamEntry, FloatArray, bool]:
    """The entry, with what a few rows have shown: logits or probabilities, and how many rows go together."""
    first = next(iter(inputs.values()))
    told = described.inputs[0].shape if described.inputs else (-1, *first.shape[1:])
    batched = len(told) == first.ndim
    most = wish.rows_a_request if batched and told[0] == -1 else 1
    entry = UpstreamEntry(
        model=described.name,
        version=wish.version or (described.versions[0] if len(described.versions) == 1 else ""),
        platform=described.platform[:64],
        metadata_sha256=described.sha256,
        digest=described.digest,
        output=_output(described, wish),
        gives="logits",  # whatever comes is looked at, and not held to be probabilities
        most_rows=1,
        batched=batched,
    )

    def ask(how: UpstreamEntry, rows: int) -> FloatArray:
        model = UpstreamModel(
            connections, how, outputs=None, datatype=None, binary=described.binary, seconds=limits.upstream_seconds
        )
        return _patiently(lambda: model.ask({name: x[:rows] for name, x in inputs.items()}))

    values = ask(entry, _TRIAL_ROWS)
    most = _together(
        lambda rows: ask(msgspec.structs.replace(entry, most_rows=rows), rows),
        values,
        min(most, described.most_rows or most, len(first)),
    )
    gives = (
        options.output if options.output != "auto" else ("probabilities" if _are_probabilities(values) else "logits")
    )
    if gives == "probabilities" and not _are_probabilities(values):
        raise UnsupportedModelError(
            f"the tensor {entry.output!r} holds no probabilities; are these logits (--output logits)?"
        )
    found = msgspec.structs.replace(entry, most_rows=most, gives=gives, datatype=DATATYPES[values.dtype])
    return found, values, described.binary


def _output(described: Description, wish: Wish) -> str:
    names = [tensor.name for tensor in described.outputs]
    if wish.output and (not names or wish.output in names):
        return wish.output
    if len(names) == 1 and not wish.output:
        return names[0]
    known = f"it has {', '.join(names)}" if names else "the server does not name its outputs"
    raise UnsupportedModelError(
        f"which tensor of {described.name!r} holds the answer? Say so with --upstream-output; {known}"
    )


def _together(ask: Callable[[int], FloatArray], alone: FloatArray, most: int) -> int:
    """How many rows may be asked together: so many as the server takes, and one where that changes their answers."""
    while most > 1:
        try:
            found = ask(most)[: len(alone)]
        except UpstreamError:
            most //= 2
            continue
        same = np.allclose(found, alone[: len(found)], rtol=_TRIAL_TOLERANCE, atol=_TRIAL_TOLERANCE)
        return most if same else 1
    return 1


def _are_probabilities(values: FloatArray) -> bool:
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1, dtype=np.float64), 1.0, atol=1e-3))


def _ask_all(model: UpstreamModel, inputs: Inputs, rows_a_request: int, report: Report) -> FloatArray:
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, rows_a_request):
        these = {name: x[start : start + rows_a_request] for name, x in inputs.items()}
        parts.append(_patiently(lambda these=these: model.ask(these)))  # type: ignore[misc]
        report(f"{min(start + rows_a_request, rows):,} of {rows:,} rows", min(1.0, (start + rows_a_request) / rows))
    return np.concatenate(parts)


def _patiently(ask: Callable[[], FloatArray]) -> FloatArray:
    """Ask again, after a while and a few times, where that may help."""
    pause = _FIRST_PAUSE_SECONDS
    for _ in range(ATTEMPTS - 1):
        try:
            return ask()
        except UnavailableError:
            time.sleep(pause)
            pause *= 2
    return ask()


def _bounded(rows: Part, most: int, seed: int) -> Part:
    if len(rows) <= most:
        return rows
    kept = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    return Part({name: x[kept] for name, x in rows.inputs.items()}, None if rows.y is None else rows.y[kept])


def _labelled(rows: Part, victim: UpstreamVictim, report: Report) -> Part:
    """Without labels, f' learns from the model's own answers."""
    if rows.y is not None:
        return rows
    return Part(rows.inputs, victim.answers(rows.inputs, report)["probabilities"].argmax(axis=1))
