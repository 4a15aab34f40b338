"""What a defense is.

A defense is a frozen, strict value: its fields are its parameters, read from the signed manifest. It sees a *batch*, rows
of many callers at once, and answers with one verdict for all rows; rows are never dropped. Its arithmetic is written once over
the Array API (first argument `xp`): with numpy it is the reference, and the same lines are traced into the model's graph at
sealing (see `garrison.sealing.tracing`), where no branch may depend on a value.

Invariants that the contract tests hold for every registered defense: the verdict of a row does not depend on the other
rows of the batch, nor on the caller unless the defense says so; equal input, equal verdict.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, Self

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.errors import GuardError
from garrison.types import Array, Batch, BoolArray, FloatArray, ModelFacts, Phase, RawScores, Released

CodeArray = npt.NDArray[np.uint8]


class Code(enum.IntEnum):
    """What happens to one row."""

    KEEP = 0
    REPLACE = 1
    REFUSE = 2


KEEP, REPLACE, REFUSE = (np.uint8(code) for code in Code)
"""The codes as array elements: numpy is ten times slower with members of an enumeration."""


class Noise(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Noise that depends on an input and the owner's key alone.

    Attributes:
        picks: shape (rows, PICKS, n): several rows of the defense's table.
        uniform: shape (rows,), in [0, 1], in single precision.
    """

    picks: FloatArray
    uniform: FloatArray


KeyedNoise = Callable[[npt.NDArray[np.intp]], Noise]


class Marks(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Which rows a defense minds. Arrays are numpy's or traced, of shape (rows,); None stands for no row.

    Attributes:
        refuse: rows whose request is refused.
        replace: rows that get another answer.
        uncertain: rows to be answered with "uncertain".
        signals: what later defenses may need, by name: real numbers, shape (rows,) or (rows, k).
    """

    refuse: Any = None
    replace: Any = None
    uncertain: Any = None
    signals: Mapping[str, Any] = {}


class Rows(msgspec.Struct, frozen=True, eq=False):
    """What new answers are made of, all for the same rows. Arrays are numpy's or traced.

    Attributes:
        answer: the answer so far, shape (rows, outputs).
        signals: signals of earlier defenses, each of shape (rows,).
        wrong: log f'(x), shape (rows, outputs); None where the defense does not `draw`.
        noise: keyed noise; None where the defense does not `draw`.
    """

    answer: Any
    signals: Mapping[str, Any]
    wrong: Any = None
    noise: Noise | None = None


Settings = Mapping[str, Any]
"""The numbers that a host may tighten, by name, as arrays without dimensions. They are inputs of the traced graph."""


class Verdict(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a defense decided, row by row. A struct, as `View` is, because several are made for every batch.

    Attributes:
        codes: shape (rows,), values of `Code`.
        values: shape (rows, outputs), the new answer; read only where the code is REPLACE.
        uncertain: shape (rows,), rows to be answered with "uncertain".
        signals: arrays of shape (rows,) or (rows, k) that later defenses may need, by name.
    """

    codes: CodeArray
    values: FloatArray | None = None
    uncertain: BoolArray | None = None
    signals: Mapping[str, FloatArray] = {}


class View(msgspec.Struct, frozen=True, eq=False):
    """What a defense may look at.

    Attributes:
        batch: the rows.
        facts: what is known of the model.
        raw: what the model computed; None in ADMIT and INSPECT.
        answer: the answer so far, shape (rows, outputs): f(x), or what earlier ANSWER defenses made of it.
        uncertain: shape (rows,), rows already marked uncertain.
        signals: signals of earlier defenses.
        noise: keyed noise for the given row numbers (see `garrison.guard.keyed`); None where the chain needs no key.
        refused: one entry a request, whether an earlier defense refused it; empty where none was.
    """

    batch: Batch
    facts: ModelFacts
    raw: RawScores | None = None
    answer: FloatArray | None = None
    uncertain: BoolArray | None = None
    signals: Mapping[str, FloatArray] = {}
    noise: KeyedNoise | None = None
    refused: tuple[bool, ...] = ()


class Defense(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every defense. Subclasses set the class variables and implement one call of their phase."""

    name: ClassVar[str]
    phase: ClassVar[Phase]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Signals of earlier defenses that this one reads; a chain that lacks them cannot be built."""
    gives: ClassVar[frozenset[str]] = frozenset()
    """Signals that this one offers."""
    needs_key: ClassVar[bool] = False
    """Whether the owner's misinformation key must be given at start."""
    adjustable: ClassVar[frozenset[str]] = frozenset()
    """Parameters that only enter by `settings`, so that the traced graph holds for any value of them."""
    reason: ClassVar[str] = ""
    """The true code of a refusal, for the ledger; "" for the defense's name. Only an ADMIT defense's reaches the client."""

    def detail(self, facts: ModelFacts) -> str:  # noqa: ARG002
        """What an ADMIT refusal tells the client: what was expected. Holds no tensor values."""
        return ""

    def settings(self, facts: ModelFacts) -> Settings:  # noqa: ARG002
        """The adjustable numbers, in the types in which they are computed with."""
        return {}

    def check(self, facts: ModelFacts) -> None:
        """Raise `GuardError` where this defense cannot work for such a model; called at sealing and at start."""

    def check_tightened(self, signed: Self) -> None:
        """Raise `GuardError` unless this setting gives away at most what the `signed` one does.

        The default allows no change: what cannot be compared cannot be called tighter.
        """
        if self != signed:
            raise_not_tighter(self.name, "it can only be changed by its owner, with a new seal")

    def noise_drawer(self, facts: ModelFacts) -> Callable[[np.random.Generator, int], FloatArray] | None:  # noqa: ARG002
        """How to draw this defense's table of keyed noise: (generator, table rows) -> (table rows, n). None for none."""
        return None


class RowDefense(Defense, frozen=True):
    """A defense of the phases ADMIT, INSPECT or ANSWER: `judge`, and `rewrite` where it replaces answers."""

    in_graph: ClassVar[bool] = True
    """Whether `judge` and `rewrite` can be traced: they look at tensors alone, and at nothing that the caller has done."""
    draws: ClassVar[bool] = False
    """Whether `rewrite` needs keyed noise and f', which are made only for the rows that need them."""

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:
        """Mark rows; never changes what it is given. In a trace the view has tensors alone."""
        raise NotImplementedError

    def rewrite(self, xp: Any, rows: Rows, settings: Settings) -> Any:
        """New answers for rows that are all to be replaced, shape (rows, outputs)."""
        raise NotImplementedError

    @property
    def every_row(self) -> bool:
        """Whether `rewrite` is computed for all rows, whatever `judge` says, so that its time tells nothing."""
        return False

    def __call__(self, view: View) -> Verdict:
        """The numpy form: judge all rows of the batch, and rewrite those that are to be replaced."""
        settings = self.settings(view.facts)
        marks = self.judge(np, view, settings)
        values = None if marks.replace is None else self._rewritten(view, marks.replace, settings)
        return Verdict(codes_of(view.batch.rows, marks), values, marks.uncertain, marks.signals)

    def _rewritten(self, view: View, replace: BoolArray, settings: Settings) -> FloatArray | None:
        if view.answer is None:
            raise GuardError(f"{self.name} runs after the model")
        if not self.every_row and not np.count_nonzero(replace):  # nearly always, with honest callers
            return None
        rows = np.arange(replace.size) if self.every_row else np.flatnonzero(replace)
        values = view.answer.copy()
        values[rows] = self.rewrite(np, self._rows(view, rows), settings)
        return values

    def _rows(self, view: View, rows: npt.NDArray[np.intp]) -> Rows:
        answer = view.answer if view.answer is None else view.answer[rows]
        signals = {name: view.signals[name][rows] for name in self.needs}
        if not self.draws:
            return Rows(answer, signals)
        if view.raw is None or view.raw.misinformation is None or view.noise is None:
            raise GuardError(f"{self.name} runs after the model, with its misinformation and the owner's key")
        return Rows(answer, signals, view.raw.misinformation(rows), view.noise(rows))


class ReleaseDefense(Defense, frozen=True):
    """A defense of the phase RELEASE: the only maker of `Released`."""

    phase: ClassVar[Phase] = Phase.RELEASE

    def say(self, xp: Any, answer: Any, facts: ModelFacts, settings: Settings) -> dict[str, Any]:
        """What may leave of the answer (shape (rows, outputs)), by name; arrays are numpy's or traced."""
        raise NotImplementedError

    def __call__(self, view: View) -> Released:
        """The numpy form: say as little of the answer as the policy allows."""
        if view.answer is None or view.uncertain is None:
            raise GuardError("release runs after the model")
        return self.released(self.say(np, view.answer, view.facts, self.settings(view.facts)), view.uncertain)

    def released(self, outputs: dict[str, Array], uncertain: BoolArray) -> Released:
        """What `say` made, wherever it was computed, as that which may leave."""
        return Released(outputs, uncertain)

    def describe_outputs(self, facts: ModelFacts) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
        """Name, dtype and shape (without the batch dimension) of each released tensor."""
        raise NotImplementedError


class RecordDefense(Defense, frozen=True):
    """A defense of the phase RECORD: remembers what a caller has now asked."""

    phase: ClassVar[Phase] = Phase.RECORD

    def __call__(self, view: View, released: Released) -> None:
        raise NotImplementedError


def codes_of(rows: int, marks: Marks) -> CodeArray:
    """Marks as codes; a row to be refused is not replaced."""
    codes = np.zeros(rows, dtype=np.uint8)
    if marks.replace is not None:
        codes[marks.replace] = REPLACE
    if marks.refuse is not None:
        codes[marks.refuse] = REFUSE
    return codes


def raise_not_tighter(name: str, why: str) -> NoReturn:
    raise GuardError(f"guard.{name}: a host may only tighten what the owner signed; {why}")


def flat(x: Array) -> Array:
    """(rows, ...) as (rows, features), without a copy."""
    return x.reshape(x.shape[0], -1)
