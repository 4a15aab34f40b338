"""A service as an attacker sees it, and the meter that an attacker asks it through.

Invariants: a row asked is a query, repeats too, also where the service refused or failed; the budget is never exceeded; a refusal,
a misinformed answer and a broken connection are data to an attack, not a crash.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from garrison.errors import (
    AuditError,
    BudgetExhaustedError,
    GarrisonError,
    QueryBudgetError,
    RefusedError,
    ThrottledError,
)
from garrison.types import Array, BoolArray, FloatArray

ROWS_A_REQUEST = 250
REFUSALS = (RefusedError, BudgetExhaustedError, ThrottledError)
"""A service that says no, by its guard or because the account may ask no more. All else that is raised is a failure."""
Labels = npt.NDArray[np.int64]


class SpentError(Exception):
    """Raised and caught within an attack: its budget does not hold the next questions."""


@dataclass(frozen=True, slots=True, eq=False)
class OracleFacts:
    """What an attacker knows of a service before the first question; all of it is public metadata.

    Attributes:
        shape: shape of one row.
        dtype: of a row.
        low, high: smallest and largest allowed value, broadcastable to `shape`; infinite where nothing is said.
        classes: number of classes.
        soft: whether answers come with probabilities.
        scores: whether answers come with scores that are no probabilities, such as a support vector machine's decision values.
        regression: whether the answer is a real value, or several; `classes` then counts them.
        missing: whether NaN may stand for a missing value, broadcastable to `shape`; None where no feature may be missing.
        accounts: how many accounts the attacker can ask from; see `AccountOracle`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: Array
    high: Array
    classes: int
    soft: bool
    scores: bool = False
    regression: bool = False
    missing: Array | None = None
    accounts: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a service answered, one entry a row.

    Attributes:
        labels: shape (rows,), the first class; -1 where there is no answer. Of a regressor 0.
        probabilities: shape (rows, classes), NaN where there is no answer; None where only labels are released.
        refused: shape (rows,), rows without an answer.
        uncertain: shape (rows,), rows that the service answered with "uncertain".
        values: shape (rows, classes), scores or a regressor's values, NaN where there is no answer; None where none are released.
    """

    labels: Labels
    probabilities: FloatArray | None
    refused: BoolArray
    uncertain: BoolArray
    values: FloatArray | None = None

    @property
    def usable(self) -> BoolArray:
        """Rows with an answer that names a class."""
        return ~(self.refused | self.uncertain)

    def __getitem__(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Answers:
        """The answers to some of the rows."""
        return Answers(
            self.labels[rows],
            None if self.probabilities is None else self.probabilities[rows],
            self.refused[rows],
            self.uncertain[rows],
            None if self.values is None else self.values[rows],
        )


@runtime_checkable
class Oracle(Protocol):
    """A service as an attacker sees it."""

    @property
    def facts(self) -> OracleFacts: ...

    def query(self, x: Array) -> Answers:
        """Ask about rows (n, *shape) in one request.

        Raises:
            GarrisonError: the service refused the request or failed. The meter makes data of it.
        """
        ...


@runtime_checkable
class AccountOracle(Oracle, Protocol):
    """A service that can be asked from several accounts; `facts.accounts` says how many."""

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` from the account of that number, from 0; account 0 is the one that `query` asks from."""
        ...


@runtime_checkable
class Following(Protocol):
    """A service of the audit's own that counts an attacker's rows: it is told what each request holds."""

    def follow(self, account: int, cover: BoolArray) -> None:
        """Told before each request, in the order of asking.

        Args:
            account: who asks.
            cover: (rows,), which of them are cover traffic.
        """
        ...


class MeteredOracle:
    """The oracle that an attack is given: counts, and stops at the budget.

    A service may refuse a whole request for one of its rows. After the first such refusal the meter asks row by row, as an
    attacker would; the rows of that request are asked, and counted, again. What the budget does not hold then counts as refused.
    An account that was refused a single row because it may ask no more is not asked from again; its rows count as asked and refused.

    Attributes:
        rows: queries so far, cover traffic left out.
        cover: rows of cover traffic so far: asked, and paid for, but not the attacker's questions.
        requests: requests so far.
        refused: rows without an answer.
        failed: rows without an answer for another reason than a refusal, such as a lost connection.
        last_error: why a request was not answered, the latest; None where each was.
        seconds: time spent waiting for answers.
    """

    def __init__(self, oracle: Oracle, budget: int, rows_a_request: int = ROWS_A_REQUEST) -> None:
        self.facts = oracle.facts
        self.budget = budget
        self.rows = self.cover = self.requests = self.refused = self.failed = 0
        self.seconds = 0.0
        self.last_error: GarrisonError | None = None
        self._oracle = oracle
        self._follower = oracle if isinstance(oracle, Following) else None
        self._step = rows_a_request
        self._spent: set[int] = set()

    @property
    def remaining(self) -> int:
        """Rows that may still be asked."""
        return self.budget - self.rows

    def query(self, x: Array, *, account: int = 0, cover: BoolArray | None = None) -> Answers:
        """Answers for rows (n, *shape); rows that were refused or lost are marked, never raised.

        Args:
            x: the rows.
            account: to ask from; anything but 0 needs an `AccountOracle`.
            cover: (n,), rows that are cover traffic and not charged to the budget; none where None.

        Raises:
            QueryBudgetError: more rows than remain; none of them is asked.
        """
        hidden = np.zeros(len(x), dtype=np.bool_) if cover is None else cover
        own = len(x) - int(hidden.sum())
        if own > self.remaining:
            raise QueryBudgetError(
                f"{own} rows were asked for and {self.remaining} of the budget of {self.budget} are left"
            )
        parts: list[Answers] = []
        first = 0
        while first < len(x):
            place, first = slice(first, first + self._step), first + self._step
            parts.append(self._request(x[place], account, hidden[place]))
        return _joined(parts, self.facts)

    def query_within(self, x: Array, *, account: int = 0) -> Answers:
        """`query` for as many of the rows as remain; those beyond are marked as refused, and not asked."""
        most = min(len(x), self.remaining)
        return _joined([self.query(x[:most], account=account), _nothing(len(x) - most, self.facts)], self.facts)

    def _request(self, part: Array, account: int, cover: BoolArray) -> Answers:
        """One request, as far as the budget goes; where it is refused as a whole, its rows one by one."""
        most = _within(cover, self.remaining)
        if most < len(part):  # rows that were asked twice have used it up
            self.refused += len(part) - most
            asked = [self._request(part[:most], account, cover[:most])] if most else []
            return _joined([*asked, _nothing(len(part) - most, self.facts)], self.facts)
        found = self._ask(part, account, cover)
        if found is not None:
            return found
        if len(part) == 1 or account in self._spent:
            return _nothing(len(part), self.facts)
        self._step = 1
        self.refused -= len(part)
        singles = [self._request(part[i : i + 1], account, cover[i : i + 1]) for i in range(len(part))]
        return _joined(singles, self.facts)

    def _ask(self, part: Array, account: int, cover: BoolArray) -> Answers | None:
        """None where the request was refused; counted before it is asked."""
        hidden = int(cover.sum())
        self.rows += len(part) - hidden
        self.cover += hidden
        if account in self._spent:
            self.refused += len(part)
            return None
        self.requests += 1
        if self._follower is not None:
            self._follower.follow(account, cover)
        begun = time.perf_counter()
        try:
            found = self._oracle.query(part) if account == 0 else _as_account(self._oracle, part, account)
        except AuditError:
            raise  # the audit's own fault
        except REFUSALS as refusal:
            self.last_error = refusal
            self.refused += len(part)
            if len(part) == 1 and isinstance(refusal, BudgetExhaustedError):
                self._spent.add(account)
            return None
        except GarrisonError as error:
            self.last_error = error
            self.refused += len(part)
            self.failed += len(part)
            return _nothing(len(part), self.facts)
        finally:
            self.seconds += time.perf_counter() - begun
        _check_answers(found, part, self.facts)
        self.refused += int(found.refused.sum())
        return found


def _within(cover: BoolArray, remaining: int) -> int:
    """How many rows, from the first, hold no more than `remaining` that are charged."""
    charged = np.cumsum(~cover)
    return int(np.searchsorted(charged, remaining, side="right"))


def filled_up(found: Answers, rows: int) -> Answers:
    """The answers, with rows behind them that were refused, so that there are so many."""
    missing = rows - len(found.labels)
    if not missing:
        return found

    def more(vector: FloatArray | None) -> FloatArray | None:
        return (
            None
            if vector is None
            else np.concatenate([vector, np.full((missing, vector.shape[1]), np.nan, vector.dtype)])
        )

    return Answers(
        np.concatenate([found.labels, np.full(missing, -1)]),
        more(found.probabilities),
        np.concatenate([found.refused, np.ones(missing, dtype=np.bool_)]),
        np.concatenate([found.uncertain, np.zeros(missing, dtype=np.bool_)]),
        more(found.values),
    )


def _as_account(oracle: Oracle, part: Array, account: int) -> Answers:
    if not isinstance(oracle, AccountOracle) or not 0 <= account < oracle.facts.accounts:
        raise AuditError(f"there is no account {account}: this service can be asked from {oracle.facts.accounts}")
    return oracle.query_as(part, account)


def _nothing(rows: int, facts: OracleFacts) -> Answers:
    unknown = np.full((rows, facts.classes), np.nan)
    return Answers(
        np.full(rows, -1),
        unknown.astype(np.float32) if facts.soft else None,
        np.ones(rows, dtype=np.bool_),
        np.zeros(rows, dtype=np.bool_),
        unknown if facts.scores or facts.regression else None,
    )


def _joined(parts: Sequence[Answers], facts: OracleFacts) -> Answers:
    if not parts:
        return _nothing(0, facts)
    return Answers(
        np.concatenate([part.labels for part in parts]),
        _together([part.probabilities for part in parts]),
        np.concatenate([part.refused for part in parts]),
        np.concatenate([part.uncertain for part in parts]),
        _together([part.values for part in parts]),
    )


def _together(vectors: Sequence[FloatArray | None]) -> FloatArray | None:
    """All of them in one array; None where a request was answered without."""
    there = [vector for vector in vectors if vector is not None]
    return np.concatenate(there) if len(there) == len(vectors) else None


def _check_answers(found: Answers, asked: Array, facts: OracleFacts) -> None:
    shapes = {found.labels.shape, found.refused.shape, found.uncertain.shape}
    if shapes != {(len(asked),)}:
        raise AuditError(f"the oracle was asked {len(asked)} rows and answered arrays of shapes {sorted(shapes)}")
    for what, vector in (("probabilities", found.probabilities), ("values", found.values)):
        if vector is not None and vector.shape != (len(asked), facts.classes):
            raise AuditError(
                f"the oracle answered {what} of shape {vector.shape}, expected ({len(asked)}, {facts.classes})"
            )


class LabelsOnly:
    """The same service, seen by an attacker who uses the first class alone."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.facts = dataclasses.replace(oracle.facts, soft=False, scores=False)

    def follow(self, account: int, cover: BoolArray) -> None:
        """See `Following`."""
        if isinstance(self._oracle, Following):
            self._oracle.follow(account, cover)

    def query(self, x: Array) -> Answers:
        return _labels_of(self._oracle.query(x))

    def query_as(self, x: Array, account: int) -> Answers:
        return _labels_of(_as_account(self._oracle, x, account))


def _labels_of(found: Answers) -> Answers:
    return Answers(found.labels, None, found.refused, found.uncertain)
