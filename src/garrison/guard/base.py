"""What a defense is.

A defense is a frozen, strict value: its fields are its parameters, read from the signed manifest. It sees a *batch*, rows
of many callers at once, and answers with one verdict for all rows; rows are never dropped. Its arithmetic is written once over
the Array API (first argument `xp`): with numpy it is the reference, and the same lines are traced into the model's graph at
sealing (see `garrison.sealing.tracing`), where no branch may depend on a value. New answers that need keyed noise are never traced: they
are made in plain Python, or in numpy where they are many, by the same lines in both forms.

Invariants that the contract tests hold for every registered defense: the verdict of a row does not depend on the other
rows of the batch, nor on the caller unless the defense says so; equal input, equal verdict.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NoReturn, Self

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.errors import GuardError
from garrison.guard.state import State
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
    """One row's noise: it depends on the input and the owner's key alone.

    Attributes:
        table: the defense's, the same for all inputs; shape (`TABLE_ROWS`, n).
        picks: the numbers of `PICKS` rows of it.
        uniform: in [0, 1].
    """

    table: FloatArray
    picks: tuple[int, ...]
    uniform: float


WhichRows = slice | npt.NDArray[np.intp]
KeyedNoise = Callable[[WhichRows], Sequence[Noise]]

FEW_ROWS = 8
"""Up to so many rows, new answers are made in plain Python, and defenses that look at values glance first."""
_FEW_NUMBERS = 100
"""Up to so many numbers in all, too: answers of more classes take less time in numpy, also where its code has left the processor's caches."""
_FEW_KEPT = 64


def are_few(rows: int, outputs: int) -> bool:
    """Whether new answers to so many rows, of so many numbers each, are made in plain Python."""
    return rows <= FEW_ROWS and rows * outputs <= _FEW_NUMBERS


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
    """

    answer: Any
    signals: Mapping[str, Any]


Settings = Mapping[str, Any]
"""The numbers that a host may tighten, by name, as arrays without dimensions. They are inputs of the traced graph."""


class Verdict(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a defense decided, row by row. A struct, as `View` is, because several are made for every batch.

    Attributes:
        codes: shape (rows,), values of `Code`.
        values: shape (rows, outputs), the new answer; read only where the code is REPLACE.
        uncertain: shape (rows,), rows to be answered with "uncertain".
        signals: arrays of shape (rows,) or (rows, k) that later defenses may need, by name. One that an earlier defense gave is replaced,
            unless this defense runs in shadow.
        reasons: by number of a refused request, the true code, and what an ADMIT refusal with a code "request..." tells the client;
            where there is none, the defense's own.
    """

    codes: CodeArray
    values: FloatArray | None = None
    uncertain: BoolArray | None = None
    signals: Mapping[str, FloatArray] = {}
    reasons: Mapping[int, tuple[str, str]] = {}

    @property
    def keeps_all(self) -> bool:
        return not np.count_nonzero(self.codes)


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
        state: what this defense remembers of callers (see `garrison.guard.state`), or what another does whose state it `shares`; None where there
            is none, where that other runs in shadow, and in a trace.
        shadow: whether this defense runs in shadow.
        settings: this defense's, where they have been made already.
    """

    batch: Batch
    facts: ModelFacts
    raw: RawScores | None = None
    answer: FloatArray | None = None
    uncertain: BoolArray | None = None
    signals: Mapping[str, FloatArray] = {}
    noise: KeyedNoise | None = None
    refused: tuple[bool, ...] = ()
    state: State | None = None
    shadow: bool = False
    settings: Settings | None = None


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
    must_remember: ClassVar[bool] = False
    """Whether the service must not start with a snapshot of caller state that this defense cannot use; else it begins anew, and says so."""
    shares: ClassVar[str] = ""
    """Name of the defense of the same chain whose caller state this one looks at; it keeps none of its own then."""
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

    def check_chain(self, chain: Sequence[Defense]) -> None:
        """Raise `GuardError` where this defense cannot work among the others of its chain; called at sealing and at start, after `check`."""

    def check_tightened(self, signed: Self) -> None:
        """Raise `GuardError` unless this setting gives away at most what the `signed` one does.

        The default allows no change: what cannot be compared cannot be called tighter.
        """
        if self != signed:
            raise_not_tighter(self.name, "it can only be changed by its owner, with a new seal")

    def fresh_state(self, facts: ModelFacts) -> State | None:  # noqa: ARG002
        """What this defense remembers of callers, empty; None for nothing. A `RowDefense` that keeps state says `in_graph = False`."""
        return None

    def noise_drawer(self, facts: ModelFacts) -> Callable[[np.random.Generator, int], FloatArray] | None:  # noqa: ARG002
        """How to draw this defense's table of keyed noise: (generator, table rows) -> (table rows, n). None for none."""
        return None


class RowDefense(Defense, frozen=True):
    """A defense of the phases ADMIT, INSPECT or ANSWER: `judge`, and `rewrite` where it replaces answers."""

    in_graph: ClassVar[bool] = True
    """Whether `judge` and `rewrite` can be traced: they look at tensors alone, and at nothing that the caller has done."""
    only_signals: ClassVar[bool] = False
    """Of an ANSWER defense that is not `in_graph`: it keeps every row, and gives nothing but other values of signals that it `needs`. Then the rest of
    the chain can be a graph: this defense runs after it, and what the graph made of the rows whose signals it changes is made anew."""
    draws: ClassVar[bool] = False
    """Whether new answers need keyed noise and f', which are made only for the rows that need them: by `redraw`, not by `rewrite`."""

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:
        """Mark rows; never changes what it is given. In a trace the view has tensors alone."""
        raise NotImplementedError

    def glance(self, view: View, settings: Settings) -> Mapping[str, FloatArray] | None:  # noqa: ARG002
        """Where it is seen at once that `judge` minds no row: the signals that it gives. None where `judge` is to be asked.

        For the few rows of a lone request, where each call of numpy costs more than the arithmetic: there the numpy form glances. A defense that is not `in_graph` looks at
        callers, and glances at every batch, in both forms. None does in shadow; a contract test over the registry holds it to what `judge` says.
        """
        return None

    def rewrite(self, xp: Any, rows: Rows, settings: Settings) -> Any:
        """New answers for rows that are all to be replaced, shape (rows, outputs)."""
        raise NotImplementedError

    def redraw(
        self, answer: list[float], wrong: list[float], signals: Mapping[str, float], noise: Noise
    ) -> list[float]:
        """The new answer of one row, where it needs keyed noise: one number an output.

        In plain Python: mostly it is one row of a batch, and numpy's calls, whose code has left the processor's caches while the model ran,
        take longer than the arithmetic.

        Args:
            answer: the answer so far.
            wrong: log f'(x), one number an output.
            signals: those that the defense `needs`.
            noise: keyed noise.
        """
        raise NotImplementedError

    def redraw_rows(
        self, answer: FloatArray, wrong: FloatArray, signals: Mapping[str, FloatArray], noise: Sequence[Noise]
    ) -> FloatArray:
        """`redraw` for many rows, in numpy: the same numbers, bit for bit, or the size of a batch would show which rows are misinformed.

        So it may only add, subtract, multiply, divide and compare in numpy: other functions round differently there than in `math`, and sums
        add in another order.

        Args:
            answer: the answers so far, shape (rows, outputs), double precision.
            wrong: log f'(x), shape (rows, outputs), double precision.
            signals: those that the defense `needs`, each of shape (rows,), double precision.
            noise: one entry a row.
        """
        raise NotImplementedError

    def redrawn(
        self, answer: FloatArray, wrong: FloatArray, signals: Mapping[str, FloatArray], noise: Sequence[Noise]
    ) -> FloatArray:
        """New answers that need keyed noise, shape (rows, outputs), in double precision: a few by `redraw`, many by `redraw_rows`."""
        if not are_few(*answer.shape):
            doubles = {name: signal.astype(np.float64) for name, signal in signals.items()}
            return self.redraw_rows(answer.astype(np.float64), wrong.astype(np.float64), doubles, noise)
        rows = enumerate(zip(answer.tolist(), wrong.tolist(), noise, strict=True))
        return np.array([self.redraw(f, w, {n: s.item(i) for n, s in signals.items()}, one) for i, (f, w, one) in rows])

    @property
    def every_row(self) -> bool:
        """Whether new answers are made for all rows, whatever `judge` says, so that their time tells nothing."""
        return False

    def __call__(self, view: View) -> Verdict:
        """The numpy form: judge all rows of the batch, and rewrite those that are to be replaced."""
        settings = self.settings(view.facts) if view.settings is None else view.settings
        marks, rows = self.judge(np, view, settings), view.batch.rows
        refuse, replace, values = marks.refuse, marks.replace, None
        if replace is not None and (self.every_row or np.count_nonzero(replace)):  # nearly never, with honest callers
            values = self._rewritten(view, replace, settings)
        if values is not None or (refuse is not None and np.count_nonzero(refuse)):
            return Verdict(codes_of(rows, marks), values, marks.uncertain, marks.signals)
        return Verdict(kept(rows), None, marks.uncertain, marks.signals)

    def _rewritten(self, view: View, replace: BoolArray, settings: Settings) -> FloatArray:
        if view.answer is None:
            raise GuardError(f"{self.name} runs after the model")
        rows = np.arange(replace.size) if self.every_row else np.flatnonzero(replace)
        values = view.answer.copy()
        signals = {name: view.signals[name][rows] for name in self.needs}
        if self.draws:
            if view.raw is None or view.raw.misinformation is None or view.noise is None:
                raise GuardError(f"{self.name} runs after the model, with its misinformation and the owner's key")
            values[rows] = self.redrawn(values[rows], view.raw.misinformation(rows), signals, view.noise(rows))
        else:
            values[rows] = self.rewrite(np, Rows(values[rows], signals), settings)
        return values


class ReleaseDefense(Defense, frozen=True):
    """A defense of the phase RELEASE: the only maker of `Released`."""

    phase: ClassVar[Phase] = Phase.RELEASE

    @property
    def all_of_it(self) -> bool:
        """Whether `say` hands out the answer as it is, under one name."""
        return False

    def say(self, xp: Any, answer: Any, facts: ModelFacts, settings: Settings) -> dict[str, Any]:
        """What may leave of the answer (shape (rows, outputs)), by name; arrays are numpy's or traced."""
        raise NotImplementedError

    def __call__(self, view: View) -> Released:
        """The numpy form: say as little of the answer as the policy allows."""
        if view.answer is None or view.uncertain is None:
            raise GuardError("release runs after the model")
        settings = self.settings(view.facts) if view.settings is None else view.settings
        return self.released(self.say(np, view.answer, view.facts, settings), view.uncertain)

    def released(self, outputs: dict[str, Array], uncertain: BoolArray) -> Released:
        """What `say` made, wherever it was computed, as that which may leave."""
        return Released(outputs, uncertain)

    def describe_outputs(self, facts: ModelFacts) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
        """Name, dtype and shape (without the batch dimension) of each released tensor."""
        raise NotImplementedError


class RecordDefense(Defense, frozen=True):
    """A defense of the phase RECORD: remembers what a caller has now asked."""

    phase: ClassVar[Phase] = Phase.RECORD
    looks_at_scores: ClassVar[bool] = False
    """Whether it reads `View.raw`. That is None where no row reached the model."""

    def __call__(self, view: View, released: Released) -> None:
        raise NotImplementedError


def kept(rows: int) -> CodeArray:
    """The codes of rows that nobody minds; not to be written to, and for a few rows always the same array."""
    return np.zeros(rows, dtype=np.uint8) if rows > _FEW_KEPT else _kept(rows)


@cache
def _kept(rows: int) -> CodeArray:
    codes = np.zeros(rows, dtype=np.uint8)
    codes.flags.writeable = False
    return codes


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
