"""Open Inference Protocol v2: what a server and its models say of themselves. Public; clients read it, nobody trusts it."""

from __future__ import annotations

from typing import Literal

import msgspec

from garrison.types import Task

EXTENSIONS = ("binary_tensor_data", "model_repository", "garrison_proof")
BATCH_DIMENSION = -1
GATEWAY_NOTE = "another server computes the model and sees the inputs; this one vouches for the guard, and for neither the parameters there nor privacy"


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor; the first dimension is the number of rows, -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class InputRange(msgspec.Struct, frozen=True, kw_only=True):
    """Values that an input may have: one number for all features, or one a feature in C order."""

    minimum: float | tuple[float, ...]
    maximum: float | tuple[float, ...]
    may_be_missing: bool | tuple[bool, ...]


class WorkMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The proof of work that a model's requests must bring (see `garrison.protocol.work`).

    Attributes:
        bits: 2^bits hashes a row.
        window_seconds: how old a proof may be.
        who: "all", or "alarmed" for callers against whom an alarm is in force; they are told by a refusal.
    """

    bits: int
    window_seconds: int
    who: str = "all"


class ModelExtras(msgspec.Struct, frozen=True, kw_only=True):
    """What Garrison says of a model beyond the protocol.

    Attributes:
        labels: class labels, empty for regression.
        ranges: by input, the values that it may have.
        manifest_digest, guard_digest: SHA-256 in hex, as the signed answers name them.
        budget_rows, budget_period: rows a caller may ask, 0 for no limit; "day" or "ever".
        budget_distinct: of these rows, how many may be different; 0 for no limit of their own.
        price_per_1000_rows: in US dollars; 0 where the service charges nothing.
        work: the proof of work that requests must bring; None for none.
        model_digest: SHA-256 in hex of the model without its guard; equal for every seal of it.
        answers_digest: of model and guard, without what only counts or prices questions.
        upstream: of a gateway, the model on another server that computes the answers; this one vouches for the guard alone.
    """

    version: str
    task: Task
    labels: tuple[str, ...]
    ranges: dict[str, InputRange]
    manifest_digest: str
    guard_digest: str
    budget_rows: int
    budget_period: str
    budget_distinct: int = 0
    price_per_1000_rows: float = 0.0
    work: WorkMetadata | None = None
    model_digest: str = ""
    answers_digest: str = ""
    upstream: str = ""


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v2/models/NAME`. `garrison` is None where another server answers."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    garrison: ModelExtras | None = None


class ServerExtras(msgspec.Struct, frozen=True, kw_only=True):
    """What Garrison says of a server beyond the protocol: how models are kept apart, and in which form guards run.

    Attributes:
        capabilities: by name, how the isolation of every model has it, as it was probed; "" where one has it not.
        gateway: whether another server computes a model here, and what that means; "" where none does.
    """

    isolation: str
    guard_forms: tuple[str, ...]
    capabilities: dict[str, str] = {}
    gateway: str = ""


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v2`."""

    name: str
    version: str
    extensions: tuple[str, ...] = EXTENSIONS
    garrison: ServerExtras | None = None


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `POST /v2/repository/index`."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = ""


class ModelKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key that signs one model's answers.

    Attributes:
        public_key: Ed25519, 32 bytes in hex.
        isolation: "none" for no enclave at all.
    """

    name: str
    version: str
    public_key: str
    isolation: str
    manifest_digest: str
    guard_digest: str


class KeySet(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /.well-known/garrison/keys`.

    Attributes:
        attested: whether evidence comes with the keys. While it is False, whoever can change the answers on the way can
            change the keys too: they protect against later tampering, not against the server itself.
    """

    attested: bool = False
    note: str = "these keys are not attested: they are as trustworthy as the connection that they came over"
    keys: tuple[ModelKey, ...] = ()
