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
from garrison.enclave.backends import BACKENDS, GATEWAY
from garrison.enclave.levels import NONE, check_level
from garrison.enclave.program import Program
from garrison.errors import ConfigError
from garrison.guard.drifting.report import DriftAlarm as DriftAlarm  # noqa: PLC0414  the same
from garrison.guard.drifting.report import DriftReport as DriftReport  # noqa: PLC0414  the same
from garrison.guard.watching.book import Alarm as Alarm  # noqa: PLC0414  the server knows of it from here
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.messages import Ask, Reply
from garrison.types import DefenseSpec
from garrison.upstream.target import Target

DEFAULT_USER = 61_234


@dataclass(frozen=True, slots=True)
class Launch:
    """All that an enclave is started with.

    Attributes:
        bundle: folder of the sealed model; it is verified inside.
        trusted: keys that may have signed it.
        key: the owner's misinformation key, where the chain needs one.
        tightened: by defense name, what the host tightens of the signed guard.
        callers: by caller, the stricter release policy that it gets (see `garrison.guard.caller_release`).
        parameter_memory: most bytes of parameters that are held in the enclave's memory at once, counted from readiness on;
            None for all of them.
        require: the least level of isolation, one of `garrison.enclave.levels.LEVELS`.
        user: number of the user that the enclave's process becomes, where root starts it; nothing else should use it.
        secret_heap_bytes: size of the enclave's heap in secret memory; 0 for an ordinary heap.
        lines: front workers that each want a pipe of their own to the enclave; 0 where the server is one process.
        signing_key: 32 random bytes that several processes without an enclave make the same signing key of; None for a fresh one.
        program: the inner program, where it is running already and loads its libraries meanwhile; None to start it.
        upstream: where the model of a guard-only bundle runs.
        snapshots: folder for sealed snapshots of caller state; None to keep the latest in memory alone.
        address: of an enclave that runs already, CID:PORT; "" where it is started here.
        collateral: what the operator fetched from the hardware's vendor, by name; goes with every quote, and who verifies checks it.
    """

    bundle: Path
    trusted: Sequence[OwnerPublicKey]
    key: bytes | None = None
    tightened: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    parameter_memory: int | None = None
    require: str = NONE
    user: int = DEFAULT_USER
    secret_heap_bytes: int = 0
    lines: int = 0
    signing_key: bytes | None = None
    program: Program | None = None
    collateral: Mapping[str, bytes] = field(default_factory=dict)
    upstream: Target | None = None
    address: str = ""
    snapshots: Path | None = None
    callers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class OutputSpec(msgspec.Struct, frozen=True):
    """A tensor that the service releases: Open Inference Protocol datatype, shape of one row."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class WorkTerms(msgspec.Struct, frozen=True):
    """The proof of work that a service asks for; see `garrison.guard.defenses.proof_of_work`."""

    bits: int
    window_seconds: int
    who: str


class ServiceCard(msgspec.Struct, frozen=True):
    """What an enclave says of itself when it is ready: public, holds no secret.

    Attributes:
        manifest_json: the verified manifest.
        manifest_digest, guard_digest: SHA-256 in hex; the guard's is that of the chain that runs.
        chain: the chain that runs.
        outputs: the tensors that are released.
        outputs_of: by caller with a release policy of its own, the tensors that it gets; "*" for whoever is not named.
        budget_rows, budget_period: the armed budget a caller, 0 for none.
        budget_distinct: of these rows, how many may be different; 0 for no limit of their own.
        price_per_1000_rows: in US dollars, as the owner signed it; 0 for none.
        work: the proof of work that is asked for; None for none.
        public_key: signs the answers.
        isolation: "none" for no enclave at all, else its level and what it lacks (see `garrison.enclave.levels`).
        guard_form: "graph" where the guard is part of the model's graph, else "numpy: " and why.
        parameters: "resident", "on demand", or "whole: ..." with the reason why the parameter memory asked for has no effect.
        technology: of the evidence that this enclave gives; "" where it gives none, and takes no sealed request then.
        capabilities: by name, what the isolation was probed to have; "" where it does not have it, else how.
        keeps_state: whether the guard remembers anything of callers, of which snapshots are kept.
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
    guard_form: str = ""
    parameters: str = ""
    technology: str = ""
    capabilities: dict[str, str] = {}
    keeps_state: bool = False
    outputs_of: dict[str, tuple[OutputSpec, ...]] = {}
    budget_distinct: int = 0
    price_per_1000_rows: float = 0.0
    work: WorkTerms | None = None


class Pending(Protocol):
    """A batch that an enclave computes meanwhile. `result` must be called in the end, by any thread; once."""

    def wait(self, seconds: float) -> bool:
        """Whether the answer is there, or comes within that time."""
        ...

    def fileno(self) -> int:
        """Of a file that an event loop can watch, open for as long as this is there: readable when some of the answer is there, or will be none."""
        ...

    def is_whole(self) -> bool:
        """Whether `result` would not block."""
        ...

    def result(self) -> list[Reply]:
        """The answer; blocks.

        Raises:
            UnavailableError: the enclave has died; nothing was answered.
        """
        ...


class Begin(Protocol):
    """See `Elsewhere.begin`."""

    def __call__(self, asks: Sequence[Ask], *, cheap: bool) -> Pending | None: ...


@runtime_checkable
class Elsewhere(Protocol):
    """An enclave that computes while its caller does something else."""

    def begin(self, asks: Sequence[Ask], *, cheap: bool) -> Pending | None:
        """Begin to answer a batch, waiting no longer than a cheap one takes; None where that cannot be now.

        Args:
            cheap: it is expected to be one.

        Raises:
            UnavailableError: the enclave has died, or is being started anew; nothing was answered.
        """
        ...


@runtime_checkable
class Swept(Protocol):
    """An enclave that wants to look after itself now and then."""

    def sweep(self) -> None:
        """Called every second, from any thread."""
        ...


@runtime_checkable
class Watching(Protocol):
    """An enclave whose operator may see which callers are alarmed, and clear them."""

    def alarms(self) -> Sequence[Alarm]:
        """The first alarm of each caller by each detector.

        Raises:
            UnavailableError: the enclave has died, or is being started anew.
        """
        ...

    def clear_alarm(self, caller: str) -> bool:
        """Forget what is known of a caller; whether anything was. Lasts.

        Raises:
            UnavailableError: the enclave has died, or is being started anew.
        """
        ...


@runtime_checkable
class Witnessing(Protocol):
    """An enclave that signs checkpoints of the server's ledger."""

    def witness(self, ledger: bytes, at: int, head: bytes, start: bytes = b"", bodies: bytes = b"") -> SignedCheckpoint:
        """See `garrison.enclave.witness.Witness.sign`; blocks.

        Raises:
            MalformedRequestError: what it signed before does not go on to this.
            UnavailableError: the enclave has died, or is being started anew.
        """
        ...


@runtime_checkable
class Drifting(Protocol):
    """An enclave whose operator may see how far callers have drifted."""

    def drift(self) -> DriftReport | None:
        """What `drift` has found; None where the chain has none.

        Raises:
            UnavailableError: the enclave has died, or is being started anew.
        """
        ...


@runtime_checkable
class Enclave(Protocol):
    """A started enclave."""

    @property
    def card(self) -> ServiceCard:
        """What the enclave says of itself; with other keys after it had to be started anew."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a call would be answered now."""
        ...

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        """Answer a batch; blocks. Safe to call from several threads.

        Raises:
            UnavailableError: the enclave has died, or is being started anew; nothing was answered.
        """
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
        IsolationError: the enclave cannot be started as asked, or is kept apart less well than is required.
    """
    if isolation not in BACKENDS:
        raise ConfigError(f"unknown isolation {isolation!r}; known are {', '.join(sorted(BACKENDS))}")
    if start.upstream is not None and isolation != NONE:
        raise ConfigError(
            f"a gateway asks another server over the network, which {isolation!r} does not let it: --isolation none"
        )
    module, _, attribute = (BACKENDS[isolation] if start.upstream is None else GATEWAY).partition(":")
    started: Enclave = getattr(importlib.import_module(module), attribute)(start)
    try:
        card = started.card
        check_level(start.require, card.isolation, card.technology, card.capabilities, {})
    except BaseException:
        started.stop()
        raise
    return started
