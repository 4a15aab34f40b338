"""What a defense is.

A defense is a frozen, strict value: its fields are its parameters, read from the signed manifest. It sees a *batch*, rows
of many callers at once, and answers with one verdict for all rows; rows are never dropped. Its arithmetic is a pure
function over the Array API (first argument `xp`), so that the same lines can be traced into the model's graph.

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
        uniform: shape (rows,), in [0, 1).
    """

    picks: FloatArray
    uniform: FloatArray


KeyedNoise = Callable[[npt.NDArray[np.intp]], Noise]


class Verdict(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a defense decided, row by row. A struct, as `View` is, because several are made for every batch.

    Attributes:
        codes: shape (rows,), values of `Code`.
        values: shape (rows, outputs), the new answer; read only where the code is REPLACE.
        uncertain: shape (rows,), rows to be answered with "uncertain".
        signals: arrays of shape (rows,) that later defenses may need, by name.
        reason: the true code of a refusal, for the ledger. Only an ADMIT defense's reason reaches the client.
        detail: what an ADMIT refusal tells the client: what was expected. Holds no tensor values.
    """

    codes: CodeArray
    values: FloatArray | None = None
    uncertain: BoolArray | None = None
    signals: Mapping[str, FloatArray] = {}
    reason: str = ""
    detail: str = ""

    @classmethod
    def keep(cls, rows: int, **signals: FloatArray) -> Verdict:
        return cls(np.zeros(rows, dtype=np.uint8), signals=signals)

    @classmethod
    def refuse(cls, where: BoolArray, reason: str, detail: str = "") -> Verdict:
        return cls(np.where(where, REFUSE, KEEP), reason=reason, detail=detail)


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
    """

    batch: Batch
    facts: ModelFacts
    raw: RawScores | None = None
    answer: FloatArray | None = None
    uncertain: BoolArray | None = None
    signals: Mapping[str, FloatArray] = {}
    noise: KeyedNoise | None = None


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
    """A defense of the phases ADMIT, INSPECT or ANSWER."""

    def __call__(self, view: View) -> Verdict:
        """Judge all rows of the batch; never changes what it is given."""
        raise NotImplementedError


class ReleaseDefense(Defense, frozen=True):
    """A defense of the phase RELEASE: the only maker of `Released`."""

    phase: ClassVar[Phase] = Phase.RELEASE

    def __call__(self, view: View) -> Released:
        """Say as little of the answer as the policy allows."""
        raise NotImplementedError

    def describe_outputs(self, facts: ModelFacts) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
        """Name, dtype and shape (without the batch dimension) of each released tensor."""
        raise NotImplementedError


class RecordDefense(Defense, frozen=True):
    """A defense of the phase RECORD: remembers what a caller has now asked."""

    phase: ClassVar[Phase] = Phase.RECORD

    def __call__(self, view: View, released: Released) -> None:
        raise NotImplementedError


def raise_not_tighter(name: str, why: str) -> NoReturn:
    raise GuardError(f"guard.{name}: a host may only tighten what the owner signed; {why}")


def flat(x: Array) -> Array:
    """(rows, ...) as (rows, features), without a copy."""
    return x.reshape(x.shape[0], -1)
