"""The ordered chain of defenses, run over one batch.

The service calls the phases one by one, in the order of `Phase`; the work in between (running the model, signing) is not the
guard's. Invariants: a chain without exactly one RELEASE cannot be built; a defense that raises is run again request by
request and refuses the request on which it raises; one refused row refuses its whole request, and no other; a shadow defense
is run and counted and changes nothing.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import msgspec
import numpy as np

from garrison.errors import GuardError
from garrison.guard import failing
from garrison.guard.base import (
    FEW_ROWS,
    KEEP,
    REFUSE,
    REPLACE,
    Defense,
    RecordDefense,
    ReleaseDefense,
    RowDefense,
    Settings,
    Verdict,
    View,
)
from garrison.guard.defenses import DEFENSES
from garrison.guard.keyed import KEY_BYTES, KeyedTable
from garrison.guard.order import check_chain
from garrison.guard.parts import narrow_batch
from garrison.guard.relabelling import Marks, RelabelDefense, relabel
from garrison.guard.state import ChainState, State
from garrison.types import Array, Batch, BoolArray, DefenseSpec, FloatArray, ModelFacts, Phase, RawScores, Released

_ENUM_AT = re.compile(r"enum value .* at `\$\.(\w+)`")


def load_defense(spec: DefenseSpec) -> Defense:
    """The defense that a spec names, with its parameters checked.

    Raises:
        GuardError: an unknown name, an unknown or ill-typed parameter.
    """
    if spec.name not in DEFENSES:
        raise GuardError(f"unknown defense {spec.name!r}; known are {', '.join(sorted(DEFENSES))}")
    module, _, attribute = DEFENSES[spec.name].partition(":")
    kind: type[Defense] = getattr(importlib.import_module(module), attribute)
    try:
        return msgspec.convert(spec.parameters, kind)
    except msgspec.ValidationError as error:
        raise GuardError(f"defense {spec.name!r}: {error}{_choices(error, kind)}") from error


def _choices(error: msgspec.ValidationError, kind: type[Defense]) -> str:
    """The words that a parameter may be, where it is another one; "" for any other error."""
    at = _ENUM_AT.search(str(error))
    if at is None:
        return ""
    words = next((_words(field.type) for field in msgspec.structs.fields(kind) if field.name == at[1]), ())
    return f"; expected one of {', '.join(map(repr, words))}" if words else ""


def _words(kind: Any) -> tuple[Any, ...]:
    """Of a literal type, or of one among others."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for one in get_args(kind) for word in _words(one))


def specs_of(defenses: Sequence[Defense], shadow: frozenset[str] = frozenset()) -> tuple[DefenseSpec, ...]:
    """The specs that rebuild the given defenses; the names in `shadow` run in shadow."""
    return tuple(DefenseSpec(name=d.name, shadow=d.name in shadow, parameters=msgspec.to_builtins(d)) for d in defenses)


def tighten(signed: Sequence[DefenseSpec], changes: Mapping[str, Mapping[str, Any]]) -> tuple[DefenseSpec, ...]:
    """The signed chain with the host's changes, each of which may only tighten.

    Args:
        signed: the chain from the manifest.
        changes: by defense name, the parameters to change; `shadow = false` arms a shadow defense.

    Raises:
        GuardError: a defense that is not in the chain, or a change that would loosen it.
    """
    unknown = sorted(set(changes) - {spec.name for spec in signed})
    if unknown:
        raise GuardError(
            f"guard.{unknown[0]}: the signed chain has no such defense, only {', '.join(s.name for s in signed)}"
        )
    return tuple(_tightened(spec, dict(changes[spec.name])) if spec.name in changes else spec for spec in signed)


def _tightened(spec: DefenseSpec, change: dict[str, Any]) -> DefenseSpec:
    shadow = change.pop("shadow", spec.shadow)
    if not isinstance(shadow, bool) or (shadow and not spec.shadow):
        raise GuardError(f"guard.{spec.name}.shadow: a host may arm a defense, not disarm it; found {shadow!r}")
    changed = DefenseSpec(name=spec.name, shadow=shadow, parameters=_merged(spec.parameters, change))
    load_defense(changed).check_tightened(load_defense(spec))
    return changed


def _merged(signed: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with some changed, also within parameters that are tables themselves."""
    inner = {
        name: _merged(signed[name], value)
        for name, value in change.items()
        if isinstance(value, Mapping) and isinstance(signed.get(name), Mapping)
    }
    return {**signed, **change, **inner}


class Progress(msgspec.Struct, eq=False):
    """What became of one batch so far. Written by the pipeline alone.

    Attributes:
        refused: one entry a request: the true code, or None.
        detail: one entry a request: what the client may be told of an ADMIT refusal.
        refuser: by request, the defense that refused it.
        replaced: shape (rows,), rows whose answer a defense changed.
        shadow: by shadow defense, one number a request: rows that it would have replaced or refused.
    """

    batch: Batch
    refused: list[str | None]
    detail: list[str]
    replaced: BoolArray
    uncertain: BoolArray
    raw: RawScores | None = None
    answer: FloatArray | None = None
    signals: dict[str, FloatArray] = {}
    shadow: dict[str, Array] = {}
    refuser: dict[int, str] = {}

    @classmethod
    def begin(cls, batch: Batch) -> Progress:
        rows, requests = batch.rows, batch.requests
        nothing: list[str | None] = [None] * requests
        return cls(batch, nothing, [""] * requests, np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.bool_))

    def admitted(self) -> tuple[Progress, tuple[int, ...]]:
        """The requests that are not refused yet, and their numbers in this batch; the others need not be computed."""
        requests = tuple(i for i, code in enumerate(self.refused) if code is None)
        if len(requests) == self.batch.requests:
            return self, requests
        rows = np.flatnonzero(np.isin(self.batch.request_of_row, requests))
        rest = Progress.begin(narrow_batch(self.batch, rows, requests))
        rest.signals = {name: signal[rows] for name, signal in self.signals.items()}
        rest.shadow = {name: counts[list(requests)] for name, counts in self.shadow.items()}
        return rest, requests


@dataclass(frozen=True, slots=True)
class Link:
    """One armed or shadow defense of the chain, with its table of keyed noise, what it remembers of callers, and its settings."""

    defense: Defense
    shadow: bool
    table: KeyedTable | None
    state: State | None
    settings: Settings
    glances: bool


class Pipeline:
    """A chain of defenses for one model.

    Args:
        specs: the chain, in order of phase.
        facts: what is known of the model.
        key: the owner's misinformation key, 32 bytes; needed by some defenses.

    Raises:
        GuardError: wrong order, not exactly one RELEASE, a signal that nobody gives, a model that does not fit, no key.
    """

    def __init__(self, specs: Sequence[DefenseSpec], facts: ModelFacts, key: bytes | None = None) -> None:
        self.facts = facts
        self.specs = tuple(specs)
        self.defenses = tuple(load_defense(spec) for spec in specs)
        check_chain(self.specs, self.defenses, facts)
        states = {d.name: d.fresh_state(facts) for d in self.defenses if not d.shares}
        self.state = ChainState({name: state for name, state in states.items() if state is not None})
        shadow = {s.name for s in specs if s.shadow}
        states |= {d.name: None if d.shares in shadow else states[d.shares] for d in self.defenses if d.shares}
        pairs = zip(specs, self.defenses, strict=True)
        self.links = tuple(
            Link(d, s.shadow, _table(d, facts, key), states[d.name], d.settings(facts), not s.shadow and _glances(d))
            for s, d in pairs
        )
        self.must_remember = tuple(d.name for d in self.defenses if d.must_remember)
        self._judges = {phase: _judges_of(phase, self.links) for phase in Phase}
        self._outside = tuple(
            (link, d) for phase in (Phase.ADMIT, Phase.INSPECT) for link, d in self._judges[phase] if not d.in_graph
        )
        self._watching = tuple((link, d) for link, d in self._judges[Phase.ANSWER] if not d.in_graph)
        rules = ((link, _marks(link.defense, facts, key)) for link in self.links)
        self._relabelling = tuple((link, rule) for link, rule in rules if rule is not None)
        self._release = next(d for d in self.defenses if isinstance(d, ReleaseDefense))
        self._release_settings = self._release.settings(facts)
        links = ((link, link.defense) for link in self.links)
        self._records = tuple((link, d) for link, d in links if isinstance(d, RecordDefense))

    @property
    def release_defense(self) -> ReleaseDefense:
        return self._release

    def find(self, name: str) -> Defense | None:
        """The chain's armed defense of that name."""
        return next((link.defense for link in self.links if link.defense.name == name and not link.shadow), None)

    def admit(self, progress: Progress) -> None:
        """ADMIT: shape and type are checked when the request is read; here bounds and calls left."""
        self._run(Phase.ADMIT, progress)

    def judge_callers(self, progress: Progress) -> None:
        """What of ADMIT and INSPECT looks at callers, and so cannot be part of a graph."""
        self._judge_all(self._outside, progress)

    def judge_refused(self, progress: Progress) -> None:
        """What the rest of ADMIT and INSPECT says of requests that `judge_callers` refused, and that no graph will see: what refuses first is told."""
        numbers = tuple(i for i, code in enumerate(progress.refused) if code is not None)
        batch = narrow_batch(progress.batch, np.flatnonzero(np.isin(progress.batch.request_of_row, numbers)), numbers)
        part = Progress.begin(batch)
        for link, defense in (*self._judges[Phase.ADMIT], *self._judges[Phase.INSPECT]):
            if defense.in_graph:
                self._judge_all([(link, defense)], part)
                continue
            for i, number in enumerate(numbers):
                if part.refused[i] is None and progress.refuser.get(number) == defense.name:
                    part.refused[i], part.detail[i] = progress.refused[number], progress.detail[number]
        for i, number in enumerate(numbers):
            progress.refused[number] = part.refused[i] or progress.refused[number]
            progress.detail[number] = part.detail[i]
        for name, counts in part.shadow.items():
            progress.shadow.setdefault(name, np.zeros(progress.batch.requests))[list(numbers)] = counts

    @property
    def watches(self) -> bool:
        """Whether any ANSWER defense looks at callers, and so cannot be part of a graph."""
        return bool(self._watching)

    def watch(self, progress: Progress, raw: RawScores) -> None:
        """What of ANSWER looks at callers, after a graph that did the rest."""
        progress.raw, progress.answer = raw, raw.values
        self._judge_all(self._watching, progress)

    def inspect(self, progress: Progress) -> None:
        """INSPECT: what does this input look like."""
        self._run(Phase.INSPECT, progress)

    def answer(self, progress: Progress, raw: RawScores) -> None:
        """ANSWER: f(x), or what the defenses make of it."""
        progress.raw, progress.answer = raw, raw.values
        self._run(Phase.ANSWER, progress)

    def release(self, progress: Progress) -> Released:
        """RELEASE: the only way from scores to something that may leave."""
        p = progress
        view = View(p.batch, self.facts, p.raw, p.answer, p.uncertain, p.signals, settings=self._release_settings)
        released = failing.release(self._release, view, progress.refused)
        if self._relabelling:
            self.relabel(progress, released.outputs)
        return released

    def relabel(self, progress: Progress, outputs: dict[str, Array]) -> None:
        """What lets classes change places in answers that are released (see `garrison.guard.relabelling`)."""
        for link, rule in self._relabelling:
            found = relabel(rule, progress.batch, progress.refused, outputs, self.facts, shadow=link.shadow)
            if found is None:
                progress.refused = [code or failing.DEFENSE_FAILED for code in progress.refused]
            elif link.shadow:
                progress.shadow[link.defense.name] = shadow_counts(found, progress.batch)
            else:
                progress.replaced |= found

    def record(self, progress: Progress, released: Released) -> None:
        """RECORD: what each caller has now asked."""
        for link, defense in self._records:
            failing.record(defense, self._view(progress, link), released, progress.refused)

    def _run(self, phase: Phase, progress: Progress) -> None:
        judges = self._judges[phase]
        if judges:
            self._judge_all(judges, progress)

    def _judge_all(self, judges: Sequence[tuple[Link, RowDefense]], progress: Progress) -> None:
        few = progress.batch.rows <= FEW_ROWS
        for link, defense in judges:
            if link.glances and (few or not defense.in_graph) and self._glance(link, defense, progress):
                continue
            view = self._view(progress, link)
            try:
                verdict = defense(view)
            except Exception:  # noqa: BLE001  whatever it is
                verdict = failing.judge_by_request(defense, view, progress.refused, progress.refuser)
            _apply(link, verdict, progress, self.facts)

    def _glance(self, link: Link, defense: RowDefense, progress: Progress) -> bool:
        """Whether a defense sees at once that it minds no row."""
        p = progress
        try:
            view = View(p.batch, self.facts, p.raw, p.answer, None, p.signals, state=link.state)
            signals = defense.glance(view, link.settings)
        except Exception:  # noqa: BLE001  it is judged in full then, and what that raises is told
            return False
        if signals:
            p.signals.update(signals)
        return signals is not None

    def _view(self, progress: Progress, link: Link) -> View:
        p, table = progress, link.table
        return View(
            p.batch,
            self.facts,
            p.raw,
            p.answer,
            p.uncertain,
            p.signals,
            None if table is None else lambda rows: table(p.batch.inputs, rows),
            tuple([c is not None for c in p.refused]) if any(p.refused) else (),
            link.state,
            link.shadow,
            link.settings,
        )


def _judges_of(phase: Phase, links: Sequence[Link]) -> tuple[tuple[Link, RowDefense], ...]:
    found = ((link, link.defense) for link in links)
    return tuple((link, d) for link, d in found if isinstance(d, RowDefense) and d.phase is phase)


def _glances(defense: Defense) -> bool:
    return isinstance(defense, RowDefense) and type(defense).glance is not RowDefense.glance


def _table(defense: Defense, facts: ModelFacts, key: bytes | None) -> KeyedTable | None:
    draw = defense.noise_drawer(facts)
    return None if draw is None else KeyedTable(_checked_key(defense, key), defense.name, draw)


def _marks(defense: Defense, facts: ModelFacts, key: bytes | None) -> Marks | None:
    return defense.marks(facts, _checked_key(defense, key)) if isinstance(defense, RelabelDefense) else None


def _checked_key(defense: Defense, key: bytes | None) -> bytes:
    if key is None or len(key) != KEY_BYTES:
        raise GuardError(
            f"{defense.name} needs the owner's misinformation key ({KEY_BYTES} bytes), which was not given"
        )
    return key


def _apply(link: Link, verdict: Verdict, progress: Progress, facts: ModelFacts) -> None:
    if verdict.signals:
        if link.shadow:
            for name, signal in verdict.signals.items():
                progress.signals.setdefault(name, signal)
        else:
            progress.signals.update(verdict.signals)
    if link.shadow:
        progress.shadow[link.defense.name] = shadow_counts(verdict.codes != KEEP, progress.batch)
        return
    if verdict.keeps_all:  # nearly always
        return
    replaced, refused = verdict.codes == REPLACE, verdict.codes == REFUSE
    if np.count_nonzero(replaced):
        _replace(replaced, verdict, progress)
    if np.count_nonzero(refused):
        refuse(refused, link.defense, facts, progress, verdict.reasons)


def _replace(where: BoolArray, verdict: Verdict, progress: Progress) -> None:
    if verdict.values is None or progress.answer is None:
        raise GuardError("a verdict that replaces must bring the new values, and comes after the model")
    progress.answer = progress.answer.copy()  # what the model computed is never written to
    progress.answer[where] = verdict.values[where]
    progress.replaced |= where
    if verdict.uncertain is not None:
        progress.uncertain |= verdict.uncertain & where


_NO_REASONS: Mapping[int, tuple[str, str]] = {}


def refuse(
    where: BoolArray,
    defense: Defense,
    facts: ModelFacts,
    progress: Progress,
    reasons: Mapping[int, tuple[str, str]] = _NO_REASONS,
) -> None:
    """Refuse the requests of the given rows, but for those that are refused already."""
    for request in np.unique(progress.batch.request_of_row[where]).tolist():
        if progress.refused[request] is None:
            code, detail = reasons.get(request) or (defense.reason or f"guard.{defense.name}", defense.detail(facts))
            progress.refused[request], progress.refuser[request] = code, defense.name
            progress.detail[request] = detail if defense.phase is Phase.ADMIT else ""


def shadow_counts(where: BoolArray, batch: Batch) -> Array:
    """Rows that a shadow defense minds, one number a request."""
    return np.bincount(batch.request_of_row, where.astype(np.float64), batch.requests)
