"""The chain as two graphs that were traced at sealing: its arithmetic is part of the runtime's one run over the model.

    guarded   asked inputs -> checks -> model -> scores, marks, what may be released
    late      rows whose new answer needs keyed noise -> marks, what may be released

What looks at the caller (budgets) stays outside and goes first. Where it refuses anything, the batch takes the numpy form, which computes
nothing for what is refused. A row that a traced ADMIT defense refuses reaches the model as the lower bounds of the range, never as it came.

Invariant: refusals, answers and counts are those of the numpy form (a contract test over the registry, and a comparison at every seal).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from garrison.guard import marks
from garrison.guard.base import RowDefense
from garrison.guard.pipeline import Link, Pipeline, Progress, refuse, shadow_counts
from garrison.types import Array, Batch, BoolArray, DefenseSpec, FloatArray, Phase, Released


class GuardedScorer(Protocol):
    """Runs the guarded graph and the late one. Settings are fed by it."""

    def guarded(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs of the guarded graph, by name, for the model's inputs."""
        ...

    def late(
        self,
        inputs: dict[str, Array],
        rows: npt.NDArray[np.intp],
        found: Mapping[str, Array],
        noise: Mapping[str, Array],
    ) -> dict[str, Array]:
        """All outputs of the late graph for the given rows of the inputs and of what the guarded graph found; noise is for them."""
        ...


def fits(signed: Sequence[DefenseSpec], running: Pipeline) -> bool:
    """Whether graphs that were traced from the signed chain hold for the one that runs: only settings may differ."""
    if len(signed) != len(running.links):
        return False
    return all(
        _without_settings(spec, link) == _without_settings(running.specs[i], link)
        for i, (spec, link) in enumerate(zip(signed, running.links, strict=True))
    )


def _without_settings(spec: DefenseSpec, link: Link) -> tuple[str, bool, dict[str, object]]:
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
        pipeline: the same chain in numpy: for what looks at callers, for noise, names and details.
        scorer: runs the graphs.
    """

    def __init__(self, pipeline: Pipeline, scorer: GuardedScorer) -> None:
        self._pipeline = pipeline
        self._scorer = scorer
        self._names = [name for name, _, _ in pipeline.release_defense.describe_outputs(pipeline.facts)]
        self._links = pipeline.links
        self._signals = [name for d in pipeline.defenses if d.phase < Phase.ANSWER for name in sorted(d.gives)]
        self._shadow = [i for i, link in enumerate(self._links) if link.shadow and _is_traced(link)]
        self._every_row = any(
            isinstance(d.defense, RowDefense) and d.defense.every_row for d in self._links if not d.shadow
        )

    def __call__(self, batch: Batch) -> tuple[Progress, Released] | None:
        """ADMIT to RELEASE over a batch; None where it must take the numpy form."""
        progress = Progress.begin(batch)
        self._pipeline.judge_callers(progress)
        if any(progress.refused):
            return None
        found = self._scorer.guarded(batch.inputs)
        outputs = {name: found[marks.released(name)] for name in self._names}
        progress.signals = {name: found[marks.signal(name)] for name in self._signals}
        quiet = not np.count_nonzero(found[marks.ADMIT]) and not np.count_nonzero(found[marks.MARKS])
        if self._every_row or not quiet:
            self._mind(progress, found, outputs)
        elif self._shadow:
            self._count(progress, found[marks.ADMIT], found[marks.MARKS])
        return progress, self._pipeline.release_defense.released(outputs, progress.uncertain)

    def _mind(self, progress: Progress, found: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        """What the marks say is done: refuse, work out late answers, count."""
        admit, answer = found[marks.ADMIT], found[marks.MARKS]
        admitted = self._refuse(progress, admit)
        late = answer & marks.LATE if admitted is None else (answer & marks.LATE) * admitted
        rows = np.arange(len(answer)) if self._every_row else np.flatnonzero(late)
        if rows.size:
            worked_out = self._scorer.late(progress.batch.inputs, rows, found, self._noise(progress.batch, rows))
            for name in self._names:
                outputs[name][rows] = worked_out[marks.released(name)]
            answer[rows] = worked_out[marks.MARKS]
        if self._shadow:
            self._count(progress, admit, answer)
        self._refuse(progress, answer)
        if any(progress.refused):
            answer = np.where(_admitted(progress), answer, np.int32(0))
        progress.replaced = (answer & marks.REPLACED) != 0
        progress.uncertain = (answer & marks.UNCERTAIN) != 0

    def _refuse(self, progress: Progress, found: marks.MarkArray) -> BoolArray | None:
        """Refuse what is marked so; the rows of requests that are left, None where all are."""
        if not np.count_nonzero(found & marks.REFUSER):
            return None
        refusers = marks.refuser(found)
        for number in np.unique(refusers[refusers >= 0]).tolist():
            refuse(refusers == number, self._links[number].defense, self._pipeline.facts, progress)
        return _admitted(progress)

    def _count(self, progress: Progress, admit: marks.MarkArray, answer: marks.MarkArray) -> None:
        """A shadow defense counts what it would do to the requests that came as far as to it."""
        admitted = _admitted(progress)
        for number in self._shadow:
            early = self._links[number].defense.phase < Phase.ANSWER
            minded = marks.minded(admit if early else answer, number)
            name = self._links[number].defense.name
            progress.shadow[name] = shadow_counts(minded if early else minded & admitted, progress.batch)

    def _noise(self, batch: Batch, rows: npt.NDArray[np.intp]) -> dict[str, FloatArray]:
        feeds: dict[str, FloatArray] = {}
        for link in self._links:
            if link.table is not None:
                noise = link.table(batch.inputs, rows)
                name = link.defense.name
                feeds |= {marks.picks(name): noise.picks, marks.uniform(name): noise.uniform}
        return feeds


def _is_traced(link: Link) -> bool:
    return isinstance(link.defense, RowDefense) and link.defense.in_graph


def _admitted(progress: Progress) -> BoolArray:
    """Rows of requests that are not refused so far."""
    kept: BoolArray = np.array([code is None for code in progress.refused])[progress.batch.request_of_row]
    return kept
