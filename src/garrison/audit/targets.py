"""Services as an attacker sees them: over HTTP, or in this process.

A target is an `Oracle` that also says what it is. The reference arms run a sealed bundle with its guard taken off, under an
`UnsafeGuardOverride`, which is logged.

Invariant: an attack sees the same of both kinds: what the release policy lets out, never raw scores.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from garrison.attacks.oracle import ROWS_A_REQUEST, Answers, Oracle, OracleFacts, filled_up
from garrison.bundle.manifest import guard_digest, input_facts
from garrison.bundle.reader import VerifiedBundle
from garrison.client import Client, Prediction
from garrison.client.prediction import join
from garrison.enclave.service import Service
from garrison.errors import LimitError, PreflightError, TooFastError
from garrison.guard.defenses.budget import Budget
from garrison.guard.override import UnsafeGuardOverride
from garrison.types import NUMPY_DTYPES, Array, BoolArray, DefenseSpec, FloatArray, Task

PROBABILITIES, SCORES, VALUES, CLASSES = "probabilities", "scores", "values", "classes"
ReleaseChoice = Literal["full", "top-k", "label"]
RELEASE_MODES: dict[ReleaseChoice, str] = {"full": "full", "top-k": "top-k", "label": "labels"}
MANY_ACCOUNTS = 1_000_000
"""So many accounts can be had where an account is but a name."""
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds that a thief waits, one after the other, who was told to ask more slowly."""
UNGUARDED = (DefenseSpec(name="release"),)
"""The chain that holds nothing back."""


class TargetName(enum.StrEnum):
    """The arms of a comparison."""

    UNDEFENDED = "undefended"
    """The plain model, no guard."""
    EXPOSURE = "outlier-exposure"
    """The sealed model, trained with outlier exposure, no guard."""
    DEFENDED = "defended"
    """The service as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """What a target is.

    Attributes:
        where: the URL, or "in-process".
        model, version: as the service names them.
        manifest_digest, guard_digest: SHA-256 in hex; "" where the service does not say.
        chain: the defenses that run, where they are known.
        overridden: whether the signed guard was taken off or changed for this audit.
        labels: names of the classes, empty where the service does not say.
        budget_rows: rows that the service answers a caller, 0 for no limit or unknown.
        model_digest, answers_digest: of the model without its guard, and of both (see `garrison.bundle.manifest`); "" where it does not say.
        price_per_1000_rows: that the service charges, in US dollars; 0 where it does not say.
    """

    where: str
    model: str
    version: str
    manifest_digest: str
    guard_digest: str
    chain: tuple[DefenseSpec, ...] | None
    overridden: bool
    labels: tuple[str, ...]
    budget_rows: int = 0
    model_digest: str = ""
    answers_digest: str = ""
    price_per_1000_rows: float = 0.0


class Target(Oracle, Protocol):
    """An oracle that says what it is."""

    @property
    def identity(self) -> Identity: ...


class ServiceTarget:
    """A sealed model in this process."""

    def __init__(self, service: Service, *, overridden: bool) -> None:
        manifest = service.manifest
        if len(manifest.inputs) != 1:
            raise PreflightError(
                f"{manifest.name!r} takes {len(manifest.inputs)} input tensors; the attacks know models with one"
            )
        spec = manifest.inputs[0]
        facts, shape = input_facts(spec), spec.shape
        released = {name for name, _, _ in service.outputs()}
        missing = facts.may_be_missing.reshape(shape)
        self.service = service
        self.facts = OracleFacts(
            shape=shape,
            dtype=facts.dtype,
            low=facts.low.reshape(shape),
            high=facts.high.reshape(shape),
            classes=manifest.outputs,
            soft=PROBABILITIES in released,
            scores=SCORES in released,
            regression=manifest.task is Task.REGRESSION,
            missing=missing if missing.any() else None,
            accounts=MANY_ACCOUNTS,
        )
        self.identity = Identity(
            where="in-process",
            model=manifest.name,
            version=str(manifest.version),
            manifest_digest=service.manifest_digest,
            guard_digest=guard_digest(service.chain),
            chain=service.chain,
            overridden=overridden,
            labels=manifest.labels,
            model_digest=manifest.model_digest(),
            answers_digest=manifest.answers_digest(service.chain),
            price_per_1000_rows=_price(service),
        )
        self._input = spec.name

    def query(self, x: Array) -> Answers:
        return self.query_as(x, 0)

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` under the name of an account; in this process an account costs nothing."""
        released = self.service.predict(self._named(x), caller=caller_name(account))
        return answers_of(released.outputs, released.uncertain, self.facts.classes)

    def raw(self, x: Array) -> FloatArray:
        """The model's own answers, shape (rows, classes).

        Raises:
            GuardError: the signed guard runs.
        """
        return self.service.raw(self._named(x)).values

    def named_rows(self, x: Array) -> dict[str, Array]:
        """The rows under the name of the model's input, in its dtype."""
        return self._named(x)

    def _named(self, x: Array) -> dict[str, Array]:
        return {self._input: np.ascontiguousarray(x, dtype=self.facts.dtype)}


def caller_name(account: int) -> str:
    """What an account is called in this process."""
    return f"audit-{account}" if account else "local"


class HttpTarget:
    """A running service.

    Args:
        client: asks it.
        url: for the report.
        accounts: further clients, each with an API key of its own.
        classes: number of classes, for services that release labels only and do not say how many there are.

    Raises:
        PreflightError: the model takes several inputs, or does not say how many classes it has.
    """

    def __init__(
        self, client: Client, url: str, classes: int | None = None, *, accounts: Sequence[Client] = ()
    ) -> None:
        metadata = client.metadata()
        if len(metadata.inputs) != 1:
            raise PreflightError(
                f"{metadata.name!r} takes {len(metadata.inputs)} input tensors; the attacks know models with one"
            )
        spec, extras = metadata.inputs[0], metadata.garrison
        if spec.datatype not in NUMPY_DTYPES:
            raise PreflightError(f"{metadata.name!r} takes tensors of the unknown datatype {spec.datatype!r}")
        outputs = {output.name: output.shape for output in metadata.outputs}
        span = None if extras is None else extras.ranges.get(spec.name)
        shape, dtype = tuple(spec.shape[1:]), NUMPY_DTYPES[spec.datatype]
        labels = () if extras is None else extras.labels
        if not shape or min(shape) < 1:
            raise PreflightError(f"{metadata.name!r} takes rows of shape {list(shape)}; the attacks need a fixed one")
        self._clients = (client, *accounts)
        self._most_rows = ROWS_A_REQUEST
        self.facts = OracleFacts(
            shape=shape,
            dtype=dtype,
            low=spread(None if span is None else span.minimum, -np.inf, shape, dtype),
            high=spread(None if span is None else span.maximum, np.inf, shape, dtype),
            classes=_classes(outputs, labels, classes, metadata.name),
            soft=PROBABILITIES in outputs,
            scores=SCORES in outputs,
            regression=VALUES in outputs,
            missing=None if span is None else _missing(shape, named=span.may_be_missing),
            accounts=len(self._clients),
        )
        if (self.facts.low > self.facts.high).any():
            raise PreflightError(f"{metadata.name!r} names a range whose smallest value is above its largest")
        self.identity = Identity(
            where=url,
            model=metadata.name,
            version="" if extras is None else extras.version,
            manifest_digest="" if extras is None else extras.manifest_digest,
            guard_digest="" if extras is None else extras.guard_digest,
            chain=None,
            overridden=False,
            labels=labels,
            budget_rows=0 if extras is None else extras.budget_rows,
            model_digest="" if extras is None else extras.model_digest,
            answers_digest="" if extras is None else extras.answers_digest,
            price_per_1000_rows=0.0 if extras is None else extras.price_per_1000_rows,
        )

    def query(self, x: Array) -> Answers:
        return self.query_as(x, 0)

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` with the API key of an account. A service that takes fewer rows at once, or fewer requests a second, is asked so."""
        client, rows = self._clients[account], np.ascontiguousarray(x, dtype=self.facts.dtype)
        left = client.left.get("rows", len(rows))
        most = min(left, len(rows)) or len(rows)  # where nothing is left, the service shall say so
        found = self._asked(client, rows[:most])
        return filled_up(answers_of(found.outputs, found.uncertain, self.facts.classes), len(rows))

    def _asked(self, client: Client, rows: Array) -> Prediction:
        """The answers to all rows; what was answered is not asked again where a later part has to wait or to be made smaller."""
        parts: list[Prediction] = []
        done, pauses = 0, iter(_PAUSES)
        while done < len(rows) or not parts:
            part = rows[done : done + self._most_rows]
            try:
                parts.append(client.predict(part, rows_a_request=max(1, len(part))))
            except LimitError:  # told before anything is computed, and charged
                if len(part) <= 1:
                    raise
                self._most_rows = len(part) // 2
            except TooFastError:
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
            else:
                done, pauses = done + len(part), iter(_PAUSES)
        return join(parts)


def spread(
    bound: float | tuple[float, ...] | None, unknown: float, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """A bound for each value of a row, in the tensor's own dtype, as the service compares it; `unknown` where none is named."""
    if bound is None:
        return np.broadcast_to(np.float64(unknown), shape)
    return np.broadcast_to(_shaped(np.asarray(bound).astype(dtype), shape), shape)


def _missing(shape: tuple[int, ...], *, named: bool | tuple[bool, ...]) -> BoolArray | None:
    found: BoolArray = np.broadcast_to(_shaped(np.asarray(named), shape), shape)
    return found if found.any() else None


def _shaped(values: Array, shape: tuple[int, ...]) -> Array:
    """One value for all, or one for each of a row, in the row's shape. A service may say anything of itself."""
    if not values.ndim:
        return values
    if values.size != math.prod(shape):
        raise PreflightError(f"the service names {values.size} bounds for rows of shape {list(shape)}")
    return values.reshape(shape)


def _classes(outputs: Mapping[str, tuple[int, ...]], labels: tuple[str, ...], given: int | None, model: str) -> int:
    if not all(outputs.values()):
        raise PreflightError(f"{model!r} names an output without a shape")
    if VALUES in outputs:
        return max(1, outputs[VALUES][-1])
    vectors = [outputs[name][-1] for name in (PROBABILITIES, SCORES) if name in outputs and CLASSES not in outputs]
    found = len(labels) or next((n for n in vectors if n > 0), 0) or given
    if not found:
        raise PreflightError(f"{model!r} does not say how many classes it has")
    return found


def _price(service: Service) -> float:
    budget = service.armed(Budget.name)
    return budget.price_per_1000_rows if isinstance(budget, Budget) else 0.0


def answers_of(outputs: Mapping[str, Array], uncertain: BoolArray, classes: int) -> Answers:
    """Released tensors as an attacker reads them. Top-k answers are completed, see `complete_top_k`.

    Args:
        outputs: by name.
        uncertain: (rows,).
        classes: of a classifier; how many values a regressor answers.

    Raises:
        PreflightError: neither classes, nor a vector over the classes, nor values.
    """
    rows = len(uncertain)
    nobody = np.zeros(rows, dtype=np.bool_)
    if VALUES in outputs:
        values = outputs[VALUES].reshape(rows, -1).astype(np.float64)
        return Answers(np.zeros(rows, dtype=np.int64), None, nobody, uncertain, values)
    vector: Any = outputs.get(PROBABILITIES)
    if CLASSES in outputs:
        numbers = outputs[CLASSES].reshape(rows, -1).astype(np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= classes):
            raise PreflightError(f"the service answers classes outside 0 to {classes - 1}")
        soft = None if vector is None else complete_top_k(numbers, vector.reshape(numbers.shape), classes)
        return Answers(numbers[:, 0], soft, nobody, uncertain)
    vector = outputs.get(SCORES) if vector is None else vector
    if vector is None or vector.ndim != 2 or vector.shape[1] != classes:
        shown = ", ".join(f"{name} {values.shape}" for name, values in outputs.items())
        raise PreflightError(f"expected probabilities over {classes} classes, or classes; found {shown}")
    labels = vector.argmax(axis=1).astype(np.int64)
    if PROBABILITIES in outputs:
        return Answers(labels, vector, nobody, uncertain)
    return Answers(labels, None, nobody, uncertain, vector.astype(np.float64))


def complete_top_k(numbers: Array, values: FloatArray, classes: int) -> FloatArray:
    """A whole vector from the k largest probabilities: what is left of 1 is spread evenly over the other classes.

    Args:
        numbers: (rows, k), class numbers.
        values: (rows, k), their probabilities.
    """
    known = values.astype(np.float64)
    others = classes - numbers.shape[1]
    rest = np.clip(1.0 - known.sum(axis=1, keepdims=True), 0.0, 1.0) / max(1, others)
    found = np.broadcast_to(rest, (len(numbers), classes)).copy()
    np.put_along_axis(found, numbers, known, axis=1)
    return found


def unguarded(bundle: VerifiedBundle) -> ServiceTarget:
    """The bundle's model with its guard taken off, for comparison."""
    override = UnsafeGuardOverride(UNGUARDED, "audit: the model without its guard, for comparison")
    return ServiceTarget(Service(bundle, override=override), overridden=True)


def guarded(bundle: VerifiedBundle, key: bytes | None, release: ReleaseChoice | None = None) -> ServiceTarget:
    """The bundle's model behind its signed guard, in this process.

    Args:
        bundle: verified.
        key: the misinformation key, where the guard needs one.
        release: another release policy than the signed one, for measurement.
    """
    if release is None:
        return ServiceTarget(Service(bundle, key=key), overridden=False)
    chain = tuple(_released(spec, release) for spec in bundle.manifest.guard)
    override = UnsafeGuardOverride(chain, f"audit: the release policy {release!r} instead of the signed one")
    return ServiceTarget(Service(bundle, key=key, override=override), overridden=True)


def changed(bundle: VerifiedBundle, key: bytes | None, chain: tuple[DefenseSpec, ...], name: str) -> ServiceTarget:
    """The bundle's model behind another chain than the signed one, in this process.

    Raises:
        GuardError: the chain cannot be built for this model.
    """
    override = UnsafeGuardOverride(chain, f"audit: the arm {name!r} instead of the signed guard")
    return ServiceTarget(Service(bundle, key=key, override=override), overridden=True)


def _released(spec: DefenseSpec, release: ReleaseChoice) -> DefenseSpec:
    if spec.name != "release":
        return spec
    return DefenseSpec(name=spec.name, parameters=spec.parameters | {"mode": RELEASE_MODES[release]})
