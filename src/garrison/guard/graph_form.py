"""The chain as a graph that was traced at sealing: its arithmetic is part of the runtime's one run over the model.

    asked inputs -> checks -> model -> scores, marks, what may be released

New answers that need keyed noise come after it, for the marked rows alone, by the same lines as in the numpy form.
What looks at the caller stays outside. What does so in ADMIT (budgets) goes first; the requests that it refuses are taken out of the batch, and nothing is
computed for them. What does so in ANSWER (`watch`) comes after the graph, and may change signals: the rows whose signals it changed are judged anew, by
the same `judge` that was traced. A row that a traced ADMIT defense refuses reaches the model as the lower bounds of the range, never as it came.

Invariant: refusals, answers and counts are those of the numpy form (a contract test over the registry, and a comparison at every seal). Not quite: what looks at
callers does not know yet which of their requests the graph will refuse, and may count them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from garrison.guard import marks
from garrison.guard.base import RecordDefense, RowDefense, Rows, View, WhichRows, are_few
from garrison.guard.defenses.release import OUTPUT_NAME
from garrison.guard.keyed import KeyedTable
from garrison.guard.numpy_form import spread
from garrison.guard.pipeline import Link, Pipeline, Progress, refuse, shadow_counts
from garrison.types import Array, Batch, BoolArray, DefenseSpec, FloatArray, ModelFacts, Phase, RawScores, Released

_NO_ROWS: npt.NDArray[np.intp] = np.zeros(0, dtype=np.intp)


class GuardedScorer(Protocol):
    """Runs the guarded graph. Settings are fed by it."""

    def guarded(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """What the guarded graph finds for the model's inputs, by the name of its output."""
        ...

    def misinformation(
        self, rows: slice | npt.NDArray[np.intp], found: Mapping[str, Array], inputs: dict[str, Array]
    ) -> FloatArray:
        """The logarithm of f'(x) for some rows of the inputs for which the guarded graph found this."""
        ...


class _Replacer:
    """An armed ANSWER defense, for rows whose answers are made anew."""

    def __init__(self, defense: RowDefense, bit: int, table: KeyedTable | None, facts: ModelFacts) -> None:
        self.defense, self.bit, self.table = defense, bit, table
        self._settings = defense.settings(facts)
        self._dtype = facts.value_dtype
        self._signals = [(name, marks.signal(name)) for name in defense.needs]

    def one(
        self, row: int, answer: list[float], wrong: list[float], found: Mapping[str, Array], inputs: dict[str, Array]
    ) -> list[float]:
        """What the defense makes of the answer of one row of a batch.

        Args:
            answer: what earlier defenses made of it.
            wrong: log f'(x) of this row.
            found: what the guarded graph found for the batch.
        """
        if self.table is not None:
            signals = {name: found[output].item(row) for name, output in self._signals}
            return self.defense.redraw(answer, wrong, signals, self.table.noise(inputs, row))
        signals = {name: found[output][row : row + 1] for name, output in self._signals}
        rows = Rows(np.array([answer], self._dtype), signals)
        new: list[float] = self.defense.rewrite(np, rows, self._settings)[0].tolist()
        return new

    def many(
        self,
        rows: WhichRows,
        answer: FloatArray,
        wrong: FloatArray,
        found: Mapping[str, Array],
        inputs: dict[str, Array],
    ) -> FloatArray:
        """`one` for several rows; one row of `answer` and `wrong` for each."""
        signals = {name: found[output][rows] for name, output in self._signals}
        new = (
            self.defense.rewrite(np, Rows(answer, signals), self._settings)
            if self.table is None
            else self.defense.redrawn(answer, wrong, signals, self.table(inputs, rows))
        )
        return new.astype(self._dtype)


def fits(signed: Sequence[DefenseSpec], running: Pipeline) -> bool:
    """Whether graphs that were traced from the signed chain hold for the one that runs: only settings may differ, and what is not in the graph."""
    if len(signed) != len(running.links):
        return False
    return all(
        _without_settings(spec, link) == _without_settings(running.specs[i], link)
        for i, (spec, link) in enumerate(zip(signed, running.links, strict=True))
    )


def _without_settings(spec: DefenseSpec, link: Link) -> tuple[str, bool, dict[str, object]]:
    if isinstance(link.defense, RecordDefense) or (isinstance(link.defense, RowDefense) and not link.defense.in_graph):
        return spec.name, False, {}
    kept = {name: value for name, value in spec.parameters.items() if name not in link.defense.adjustable}
    return spec.name, spec.shadow, kept


def settings_of(pipeline: Pipeline) -> dict[str, Array]:
    """The settings of a chain, by the name of the graph's input."""
    return {
        marks.setting(link.defense.name, name): value
        for link in pipeline.links
        for name, value in link.defense.settings(pipeline.facts).items()
    }


class GraphForm:
    """Runs batches through the traced guard.

    Args:
        pipeline: the same chain in numpy: for what looks at callers, for answers that need noise, names and details.
        scorer: runs the graph.
    """

    def __init__(self, pipeline: Pipeline, scorer: GuardedScorer) -> None:
        self._pipeline = pipeline
        self._scorer = scorer
        self._names = [name for name, _, _ in pipeline.release_defense.describe_outputs(pipeline.facts)]
        self._released = [(name, marks.released(name)) for name in self._names]
        self._links = pipeline.links
        signals = (name for d in pipeline.defenses if d.phase < Phase.ANSWER for name in sorted(d.gives))
        self._signals = [(name, marks.signal(name)) for name in signals]
        self._shadow = [i for i, link in enumerate(self._links) if link.shadow and _is_traced(link)]
        self._values = OUTPUT_NAME[pipeline.facts.task]
        self._release = pipeline.release_defense
        self._release_settings = self._release.settings(pipeline.facts)
        self._replacers = [
            _Replacer(link.defense, marks.minds(i), link.table, pipeline.facts)
            for i, link in enumerate(self._links)
            if isinstance(link.defense, RowDefense) and link.defense.phase is Phase.ANSWER and not link.shadow
            if link.defense.in_graph
        ]
        watching = [link.defense for link in self._links if isinstance(link.defense, RowDefense) and _watches(link)]
        self._watched = [(name, marks.signal(name)) for name in sorted({n for d in watching for n in d.needs})]
        self._first_watching = next((i for i, link in enumerate(self._links) if _watches(link)), 0)
        self._replacing = sum(replacer.bit for replacer in self._replacers)
        self._drawing = sum(replacer.bit for replacer in self._replacers if replacer.table is not None)
        records = (link.defense for link in self._links if isinstance(link.defense, RecordDefense))
        # Where the answer itself does not leave, the last check of it (`garrison.guard.outputs`) looks at it here.
        self._keeps_raw = any(defense.looks_at_scores for defense in records) or self._values not in self._names
        self._every_row = any(replacer.defense.every_row for replacer in self._replacers)

    def __call__(self, batch: Batch) -> tuple[Progress, Released]:
        """ADMIT to RELEASE over a batch. Rows of requests that were refused before the graph come back as zeros."""
        everyone = Progress.begin(batch)
        self._pipeline.judge_callers(everyone)
        if not any(everyone.refused):
            return self._admitted(everyone)
        progress, requests = everyone.admitted()
        self._pipeline.judge_refused(everyone)
        if not requests:
            return everyone, Released({})
        return spread(everyone, requests, *self._admitted(progress))

    def _admitted(self, progress: Progress) -> tuple[Progress, Released]:
        """Requests that nobody refused who looks at callers."""
        found = self._scorer.guarded(progress.batch.inputs)
        outputs = {name: found[output] for name, output in self._released}
        progress.signals = {name: found[output] for name, output in self._signals}
        again = _NO_ROWS
        if self._keeps_raw and self._values in found:  # older graphs may not have it
            progress.raw = RawScores(found[self._values])
        if self._pipeline.watches:
            found, again = self._watch(progress, found)
        # Lists of Python: numpy's code has left the processor's caches while the model ran.
        quiet = not any(found[marks.ADMIT].tolist()) and not any(found[marks.MARKS].tolist())
        if self._every_row or not quiet:
            self._mind(progress, found, outputs, again)
        elif self._shadow:
            self._count(progress, found[marks.ADMIT], found[marks.MARKS])
        self._pipeline.relabel(progress, outputs)
        return progress, self._release.released(outputs, progress.uncertain)

    def _watch(self, progress: Progress, found: dict[str, Array]) -> tuple[dict[str, Array], npt.NDArray[np.intp]]:
        """Let those who look at callers see what the graph found.

        Returns:
            What the graph would have found with their signals, and the rows of which that is something else.
        """
        if np.count_nonzero(found[marks.ADMIT]):
            self._refuse(progress, found[marks.ADMIT], found[marks.MARKS])
        graph = progress.signals | {name: found[output] for name, output in self._watched}
        progress.signals = dict(graph)
        self._pipeline.watch(progress, RawScores(found[self._values]))
        changed = {name: new for name, new in progress.signals.items() if new is not graph[name]}
        if not changed:
            return found, _NO_ROWS
        differ = [~np.equal(new, graph[name]) for name, new in changed.items()]  # NaN is not itself
        rows = np.flatnonzero(np.logical_or.reduce(differ))
        judged = self._judge_again(progress, found[marks.MARKS], changed.keys(), rows)
        return {**found, marks.MARKS: judged, **{marks.signal(n): new for n, new in changed.items()}}, rows

    def _judge_again(
        self, progress: Progress, answer: marks.MarkArray, changed: Collection[str], rows: npt.NDArray[np.intp]
    ) -> marks.MarkArray:
        """Marks of ANSWER, of some rows by the signals as they are now."""
        judged, facts = answer.copy(), self._pipeline.facts
        signals = {name: signal[rows] for name, signal in progress.signals.items()}
        view = View(progress.batch, facts, signals=signals)
        for i, link in enumerate(self._links):
            defense = link.defense
            if not isinstance(defense, RowDefense) or not defense.in_graph or defense.phase is not Phase.ANSWER:
                continue
            if i < self._first_watching:
                continue  # it stands before what changed the signals
            if defense.needs.isdisjoint(changed):
                continue
            found = defense.judge(np, view, defense.settings(facts))
            judged[rows] = marks.judged_again(judged[rows], i, found, shadow=link.shadow)
        return judged

    def _mind(
        self,
        progress: Progress,
        found: dict[str, Array],
        outputs: dict[str, Array],
        again: npt.NDArray[np.intp],
    ) -> None:
        """What the marks say is done: refuse, make answers that need noise, count."""
        admit, answer = found[marks.ADMIT], found[marks.MARKS]
        if np.count_nonzero(admit):
            answer = self._refuse(progress, admit, answer)
        # Numbers of Python: mostly it is one row of the batch.
        minded, some = _minded(answer)
        drawn: Sequence[int] = range(len(answer))
        if not self._every_row:
            anew = set(again.tolist())
            drawn = [r for r, m in minded.items() if m & self._drawing or (r in anew and m & self._replacing)]
        if drawn:
            self._redraw(progress.batch.inputs, found, outputs, minded, drawn)
        if self._shadow:
            self._count(progress, admit, answer)
        if some & marks.REFUSER:
            minded, _ = _minded(self._refuse(progress, answer, answer))
        for row, mark in minded.items():
            if mark & self._replacing:
                progress.replaced[row] = True
            if mark & marks.UNCERTAIN:
                progress.uncertain[row] = True

    def _redraw(
        self,
        inputs: dict[str, Array],
        found: dict[str, Array],
        outputs: dict[str, Array],
        minded: Mapping[int, int],
        drawn: Sequence[int],
    ) -> None:
        """Make the answers of some rows anew, with keyed noise, and what may be released of them.

        Args:
            minded: marks by row, of those that have any.
            drawn: the rows, rising. With `every_row` they are all, and what is made of rows that nothing minds is dropped.
        """
        rows = slice(drawn[0], drawn[-1] + 1) if drawn[-1] - drawn[0] + 1 == len(drawn) else np.array(drawn)
        wrong = self._scorer.misinformation(rows, found, inputs) if self._drawing else np.zeros((len(drawn), 1))
        if not are_few(len(drawn), self._pipeline.facts.outputs):
            self._say(outputs, rows, self._many(rows, wrong, inputs, found, [minded.get(row, 0) for row in drawn]))
            return
        for row, weights in zip(drawn, wrong.tolist(), strict=True):
            answer, mark = found[self._values][row].tolist(), minded.get(row, 0)
            for replacer in self._replacers:
                if mark & replacer.bit:
                    answer = replacer.one(row, answer, weights, found, inputs)
                elif self._every_row and replacer.table is not None:
                    replacer.one(row, answer, weights, found, inputs)
            if self._release.all_of_it:
                outputs[self._names[0]][row] = answer
            else:
                self._say(outputs, slice(row, row + 1), np.array([answer], self._pipeline.facts.value_dtype))

    def _many(
        self,
        rows: WhichRows,
        wrong: FloatArray,
        inputs: dict[str, Array],
        found: Mapping[str, Array],
        marked: list[int],
    ) -> FloatArray:
        """New answers for some rows, which have these marks."""
        answers: FloatArray = found[self._values][rows]
        for replacer in self._replacers:
            unminded = [place for place, mark in enumerate(marked) if not mark & replacer.bit]
            if len(unminded) < len(marked) or (self._every_row and replacer.table is not None):
                new = replacer.many(rows, answers, wrong, found, inputs)
                if unminded:
                    new[unminded] = answers[unminded]
                answers = new
        return answers

    def _say(self, outputs: dict[str, Array], rows: WhichRows, answers: FloatArray) -> None:
        said = self._release.say(np, answers, self._pipeline.facts, self._release_settings)
        for name in self._names:
            outputs[name][rows] = said[name]

    def _refuse(self, progress: Progress, found: marks.MarkArray, answer: marks.MarkArray) -> marks.MarkArray:
        """Refuse what is marked so; the marks of answers, 0 for those that are refused."""
        refusers = marks.refuser(found)
        for number in np.unique(refusers[refusers >= 0]).tolist():
            refuse(refusers == number, self._links[number].defense, self._pipeline.facts, progress)
        return np.where(_kept(progress), answer, np.int32(0))

    def _count(self, progress: Progress, admit: marks.MarkArray, answer: marks.MarkArray) -> None:
        """A shadow defense counts what it would do to the requests that came as far as to it."""
        admitted = _kept(progress)
        for number in self._shadow:
            early = self._links[number].defense.phase < Phase.ANSWER
            minded = marks.minded(admit if early else answer, number)
            name = self._links[number].defense.name
            progress.shadow[name] = shadow_counts(minded if early else minded & admitted, progress.batch)


def _minded(answer: marks.MarkArray) -> tuple[dict[int, int], int]:
    """Marks by row, of those that have any, and all their bits."""
    minded, bits = {}, 0
    for row, mark in enumerate(answer.tolist()):
        if mark:
            minded[row] = mark
            bits |= mark
    return minded, bits


def _is_traced(link: Link) -> bool:
    return isinstance(link.defense, RowDefense) and link.defense.in_graph


def _watches(link: Link) -> bool:
    return isinstance(link.defense, RowDefense) and link.defense.only_signals


def _kept(progress: Progress) -> BoolArray:
    """Rows of requests that are not refused so far."""
    kept: BoolArray = np.array([code is None for code in progress.refused])[progress.batch.request_of_row]
    return kept
