"""The models that one server offers, each in one or several versions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from garrison.attest.evidence import Evidence
from garrison.bundle.manifest import InputSpec, Manifest, parse_manifest
from garrison.enclave.host import Elsewhere, Enclave, ServiceCard
from garrison.errors import ConfigError
from garrison.limits import Limits
from garrison.protocol.oip import ALL_JSON, GRPC
from garrison.server.batching import Batcher
from garrison.server.budgets import BudgetBook
from garrison.server.ledger.ledger import Ledger
from garrison.server.model_budget import ModelBudget
from garrison.server.quotas import Quotas
from garrison.server.rate_limits import RateLimits
from garrison.types import NUMPY_DTYPES

_JSON_BYTES_A_VALUE = 4
"""A short form, "0.5,": a longer one makes a request look larger than it is, and the shortest one, "0,", half as large."""
_JSON_FRAME_BYTES = 1024
"""Names, shapes and parameters beside binary tensors; so much of a JSON part counts for nothing."""
_SEALED_OVERHEAD_BYTES = 1_500


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model, started.

    Attributes:
        enclave: answers; an enclave that is started anew may say other things on its card.
        row_bytes: size of one row in binary form.
        least_row_bytes: the same, as short as gRPC may say it.
        features: values in one row.
        rate_limits: says what a caller has left.
        budget: what callers may ask.
    """

    enclave: Enclave
    manifest: Manifest
    batcher: Batcher
    row_bytes: int
    least_row_bytes: int
    features: int
    rate_limits: RateLimits
    budget: ModelBudget

    @property
    def card(self) -> ServiceCard:
        return self.enclave.card

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version

    async def evidence(self, nonce: bytes, caller: str) -> Evidence:
        """Evidence of this model's enclave for a caller, between two batches.

        Raises:
            NotFoundError: this isolation gives none.
            UnavailableError: too many ask at once, or this caller too often, or the enclave is being started anew.
        """
        return await self.batcher.between(lambda: self.enclave.evidence(nonce), caller)

    def sealed_cost(self, body_bytes: int) -> float:
        """What a sealed request may cost, in rows: as if all of it were tensors in binary form."""
        return max(1.0, (body_bytes - _SEALED_OVERHEAD_BYTES) / self.row_bytes)

    def cost(self, body_bytes: int, json_bytes: int) -> float:
        """What a request may cost, in rows. The server does not read requests, so it goes by the length of both parts: tensors may
        stand in either, whatever the header says. In a message of gRPC a whole number may take one byte, whatever its type is."""
        if json_bytes == GRPC:
            return max(1.0, body_bytes / self.least_row_bytes)
        in_json = body_bytes if json_bytes == ALL_JSON else min(max(json_bytes - _JSON_FRAME_BYTES, 0), body_bytes)
        binary = 0 if json_bytes == ALL_JSON else max(body_bytes - json_bytes, 0)
        return max(1.0, in_json / (_JSON_BYTES_A_VALUE * self.features) + binary / self.row_bytes)


def make_model(
    enclave: Enclave,
    book: BudgetBook | None,
    worker: Executor,
    limits: Limits,
    quotas: Quotas | None = None,
    ledger: Ledger | None = None,
) -> Model:
    """Put a queue and a budget before a started enclave."""
    card = enclave.card
    manifest = parse_manifest(card.manifest_json)
    budget = ModelBudget(manifest.name, card.budget_rows, card.budget_period, book, card.budget_distinct, quotas)
    features = sum(math.prod(spec.shape) for spec in manifest.inputs)
    row_bytes, least = sum(map(_row_bytes, manifest.inputs)), sum(map(_least_row_bytes, manifest.inputs))
    begin = enclave.begin if isinstance(enclave, Elsewhere) else None
    recorder = None if ledger is None else ledger.recorder(manifest.name, manifest.version)
    batcher = Batcher(enclave.call, budget, worker, limits, begin, recorder)
    return Model(enclave, manifest, batcher, row_bytes, least, features, RateLimits(budget), budget)


def _row_bytes(spec: InputSpec) -> int:
    return math.prod(spec.shape) * NUMPY_DTYPES[spec.datatype].itemsize


def _least_row_bytes(spec: InputSpec) -> int:
    dtype = NUMPY_DTYPES[spec.datatype]
    return math.prod(spec.shape) * (dtype.itemsize if dtype.kind == "f" else 1)


class Hosting:
    """All models of a server. The default version is the highest.

    Raises:
        ConfigError: none at all, or two of the same name and version.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._models: dict[str, dict[int, Model]] = {}
        for model in models:
            versions = self._models.setdefault(model.name, {})
            if model.version in versions:
                raise ConfigError(f"model {model.name!r} version {model.version} is given twice")
            versions[model.version] = model
        if not self._models:
            raise ConfigError("there is no model to serve: name at least one bundle")

    def __iter__(self) -> Iterator[Model]:
        for name in sorted(self._models):
            for version in sorted(self._models[name]):
                yield self._models[name][version]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._models))

    def versions(self, name: str) -> tuple[int, ...]:
        """A model's versions, oldest first."""
        return tuple(sorted(self._models[name]))

    def default(self, name: str) -> Model:
        return self._models[name][self.versions(name)[-1]]
