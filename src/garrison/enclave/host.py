"""The host's side of an enclave: what the server may know of it. The server sees asks and replies, never tensors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from garrison.attest.evidence import Evidence
from garrison.crypto.owner import OwnerPublicKey
from garrison.enclave.backends import BACKENDS
from garrison.errors import ConfigError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.messages import Ask, Reply
from garrison.types import DefenseSpec


@dataclass(frozen=True, slots=True)
class Launch:
    """All that an enclave is started with.

    Attributes:
        bundle: folder of the sealed model; it is verified inside.
        trusted: keys that may have signed it.
        key: the owner's misinformation key, where the chain needs one.
        tightened: by defense name, what the host tightens of the signed guard.
        parameter_memory: most bytes of parameters that are held in the enclave's memory at once, counted from readiness on;
            None for all of them.
    """

    bundle: Path
    trusted: Sequence[OwnerPublicKey]
    key: bytes | None = None
    tightened: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    parameter_memory: int | None = None


class OutputSpec(msgspec.Struct, frozen=True):
    """A tensor that the service releases: Open Inference Protocol datatype, shape of one row."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ServiceCard(msgspec.Struct, frozen=True):
    """What an enclave says of itself when it is ready: public, holds no secret.

    Attributes:
        manifest_json: the verified manifest.
        manifest_digest, guard_digest: SHA-256 in hex; the guard's is that of the chain that runs.
        chain: the chain that runs.
        outputs: the tensors that are released.
        budget_rows, budget_period: the armed budget a caller, 0 for none.
        public_key: signs the answers.
        isolation: "none" for no enclave at all.
        guard_form: "numpy", or "graph" where the guard is part of the model's graph.
        technology: of the evidence that this enclave gives; "" where it gives none, and takes no sealed request then.
        capabilities: by name, what the isolation was probed to have; "" where it does not have it, else how.
    """

    manifest_json: bytes
    manifest_digest: str
    guard_digest: str
    chain: tuple[DefenseSpec, ...]
    outputs: tuple[OutputSpec, ...]
    budget_rows: int
    budget_period: str
    public_key: bytes
    isolation: str
    guard_form: str = "numpy"
    technology: str = ""
    capabilities: dict[str, str] = {}


@runtime_checkable
class Enclave(Protocol):
    """A started enclave."""

    @property
    def card(self) -> ServiceCard: ...

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        """Answer a batch; blocks. Safe to call from one thread at a time."""
        ...

    def evidence(self, nonce: bytes) -> Evidence:
        """Evidence over the keys of the present epoch, bound to the client's nonce (32 bytes).

        Raises:
            NotFoundError: this isolation gives no evidence.
            UnavailableError: the enclave is being started anew.
        """
        ...

    def stop(self) -> None: ...


def launch(isolation: str, start: Launch) -> Enclave:
    """Start an enclave of the named technology.

    Raises:
        ConfigError: no such technology.
        BundleError, GuardError, KeyFileError: the model must not be served.
    """
    if isolation not in BACKENDS:
        raise ConfigError(f"unknown isolation {isolation!r}; known are {', '.join(sorted(BACKENDS))}")
    module, _, attribute = BACKENDS[isolation].partition(":")
    started: Enclave = getattr(importlib.import_module(module), attribute)(start)
    return started
