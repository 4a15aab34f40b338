"""The client without its transport: what it knows and asks, as conversations (see `garrison.client.talk`).

So the synchronous and the asynchronous client differ in nothing but how bytes travel, and tests need no network.
"""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from garrison.attest.policy import Policy
from garrison.client.names import known_as
from garrison.client.outputs import prediction_of
from garrison.client.prediction import Prediction, join
from garrison.client.sealed import Attested, SealedChannel, infer_path, model_path
from garrison.client.signed import HttpSignatures
from garrison.client.talk import Talk, bearer, decode, exchange, left_of
from garrison.client.working import EVERYBODY, Job, rows_at_once, terms_of
from garrison.errors import (
    ConfigError,
    InputError,
    NotFoundError,
    ProofError,
    ServiceError,
    UnavailableError,
    WorkRequiredError,
)
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.protocol.oip_metadata import (
    BATCH_DIMENSION,
    IndexEntry,
    KeySet,
    ModelExtras,
    ModelKey,
    ModelMetadata,
    TensorMetadata,
)
from garrison.protocol.statement import verify_answer
from garrison.protocol.work import Progress
from garrison.types import NUMPY_DTYPES, Array

ROWS_A_REQUEST = 256
_NONCE_BYTES = 16
_MOST_DIGITS = 15


class Part(NamedTuple):
    """Some of the rows, as a request: its body, the length of its JSON part, how many rows, and the outputs that are wanted (none for all)."""

    body: bytes
    json_bytes: int
    rows: int
    outputs: Sequence[str]


class Asked(NamedTuple):
    """A plain request whose answer is checked."""

    body: bytes
    nonce: str
    path: str
    signatures: HttpSignatures | None


class Core:
    """What a client knows and asks. See `garrison.client.Client` for the arguments."""

    def __init__(
        self,
        *,
        api_key: str | None,
        model: str | None,
        version: int | str | None,
        attempts: int,
        verify: bool,
        policy: Policy | None = None,
        on_work: Progress | None = None,
        signatures: HttpSignatures | None = None,
        caller: str = "",
    ) -> None:
        if policy is not None and not verify:
            raise ConfigError("sealed requests are always checked: leave verify=False away, or sealed=True")
        if signatures is not None and (policy is not None or not verify):
            raise ConfigError(
                "signatures go with plain requests whose answers are checked: leave sealed and verify away"
            )
        self._signatures = signatures
        self.left: dict[str, int] = {}
        self._headers = bearer(api_key)
        self._caller = known_as(api_key, caller)
        self._on_work = on_work
        self._works = False
        self._model = model
        self._version = None if version is None else str(version)
        self._attempts = attempts
        self._verify = verify
        self._metadata: ModelMetadata | None = None
        self._key: ModelKey | None = None
        self._vouched: tuple[ModelMetadata, Attested, ModelMetadata] | None = None
        self._channel = None
        if policy is not None:
            self._channel = SealedChannel(policy, api_key=api_key, attempts=attempts, caller=caller)

    def index(self) -> Talk[tuple[IndexEntry, ...]]:
        """The models that the server has."""
        response = yield from self._exchange(Request("POST", "/v2/repository/index", dict(self._headers)))
        return decode(response.body, tuple[IndexEntry, ...], "the list of models")

    def metadata(self) -> Talk[ModelMetadata]:
        """What the model takes and gives; asked for once."""
        if self._metadata is None:
            path = model_path((yield from self._name()), self._version)
            response = yield from self._exchange(Request("GET", path, dict(self._headers)))
            self._metadata = decode(response.body, ModelMetadata, "the model's metadata")
        return self._metadata

    def attest(self) -> Talk[Attested]:
        """The enclave that answers, attested where it was not yet.

        Raises:
            ConfigError: this client does not seal.
            AttestationError: the evidence is not good enough.
        """
        if self._channel is None:
            raise ConfigError("this client attests nothing: make it with sealed=True")
        return (yield from self._channel.attested((yield from self._name()), self._version))

    def predict(
        self,
        x: Array | Mapping[str, Array],
        *,
        outputs: tuple[str, ...] = (),
        rows_a_request: int = ROWS_A_REQUEST,
        binary: bool = True,
    ) -> Talk[Prediction]:
        """Ask for predictions, in as many requests as it takes.

        Raises:
            UnavailableError: sealed, and the enclave was started anew meanwhile with another version of the model.
        """
        attested = None if self._channel is None else (yield from self.attest())
        metadata = yield from self.metadata()
        if attested is not None:
            metadata = self._vouched_metadata(metadata, attested)
        elif self._verify:
            yield from self._signing_key(metadata)
        inputs = _fitted(x, metadata)
        rows = len(next(iter(inputs.values())))
        rows_a_request = rows_at_once(terms_of(metadata), rows_a_request)
        parts = []
        for first in range(0, rows, rows_a_request):
            some = {name: values[first : first + rows_a_request] for name, values in inputs.items()}
            body, json_bytes = encode_request(some, binary=binary, outputs=outputs)
            asked = min(rows_a_request, rows - first)
            parts.append((yield from self._ask(Part(body, json_bytes, asked, outputs), metadata, attested)))
        return join(parts)

    def _vouched_metadata(self, metadata: ModelMetadata, attested: Attested) -> ModelMetadata:
        known = self._vouched
        if known is None or known[0] is not metadata or known[1] is not attested:
            known = self._vouched = (metadata, attested, _attested_metadata(metadata, attested))
        return known[2]

    def _ask(self, part: Part, metadata: ModelMetadata, attested: Attested | None) -> Talk[Prediction]:
        terms = terms_of(metadata)
        if terms is None:
            return (yield from self._ask_once(part, metadata, attested, None))
        job = Job(terms, part.rows, self._caller, self._on_work)
        self._works = self._works or terms.who == EVERYBODY
        try:
            return (yield from self._ask_once(part, metadata, attested, job if self._works else None))
        except WorkRequiredError:  # an alarm is in force, or a service that was started anew has another key
            self._works, self._key = True, None
        return (yield from self._ask_once(part, metadata, attested, job))

    def _ask_once(
        self, part: Part, metadata: ModelMetadata, attested: Attested | None, job: Job | None
    ) -> Talk[Prediction]:
        name = yield from self._name()
        body, json_bytes, rows, outputs = part
        if self._channel is not None and attested is not None:
            sealed = yield from self._channel.ask(name, self._version, body, json_bytes, job=job)
            self.left = sealed.left
            if sealed.attested.manifest_sha256 != attested.manifest_sha256:
                # Its labels, and the meaning of its inputs, may be others than those that this prediction began with.
                raise UnavailableError("the service has another version of the model since this began; ask again")
            opened = decode_response(sealed.body, sealed.json_bytes)
            return prediction_of(opened, rows, metadata, sealed.proof, proved=True, attested=True, asked=outputs)
        nonce = secrets.token_hex(_NONCE_BYTES)
        headers = self._headers | {"content-type": "application/json", "garrison-nonce": nonce}
        if json_bytes != ALL_JSON:
            headers |= {
                "content-type": "application/octet-stream",
                "inference-header-content-length": str(json_bytes),
            }
        if job is not None:
            key = yield from self._signing_key(metadata)
            headers["garrison-work"] = yield from job.proof(_key_bytes(key), body)
        path = infer_path(name, self._version)
        if self._signatures is not None:
            headers |= self._signatures.headers(body, nonce)
        response = yield from self._exchange(Request("POST", path, headers, body))
        self.left = left_of(response)
        proof = b""
        if self._verify:
            asked = Asked(body, nonce, path, self._signatures)
            proof = yield from self._check_proof(response, asked, metadata)
        answer = decode_response(response.body, _length(response))
        return prediction_of(answer, rows, metadata, proof, proved=self._verify, asked=outputs)

    def _name(self) -> Talk[str]:
        if self._model is None:
            names = sorted({entry.name for entry in (yield from self.index())})
            if not names:
                raise NotFoundError("the server shows this caller no model: its key names none, or others")
            if len(names) != 1:
                raise NotFoundError(f"the server has {len(names)} models; name one of {', '.join(names)}")
            self._model = names[0]
        return self._model

    def _signing_key(self, metadata: ModelMetadata) -> Talk[ModelKey]:
        """The key that the model's answers are signed with, as the server names it; fetched once."""
        if self._key is None:
            try:
                response = yield from self._exchange(Request("GET", "/.well-known/garrison/keys", dict(self._headers)))
            except NotFoundError as error:
                raise ProofError(
                    "this server does not sign its answers; verify=False (--no-verify) does without"
                ) from error
            keys = decode(response.body, KeySet, "the server's keys").keys
            version = None if metadata.garrison is None else metadata.garrison.version
            mine = [key for key in keys if (key.name, key.version) == (metadata.name, version)]
            if len(mine) != 1:
                raise ProofError(f"the server names {len(mine)} signing keys for {metadata.name!r} version {version}")
            self._key = mine[0]
        return self._key

    def _check_proof(self, response: Response, asked: Asked, metadata: ModelMetadata) -> Talk[bytes]:
        """Check the answer's proof; where it does not hold, once more under the key that the server names now.

        A service that was started anew has another key. As the key is not attested, whoever could slip one in now could have
        done so at first.
        """
        known = yield from self._signing_key(metadata)
        try:
            return _check(response, asked, known)
        except ProofError:
            self._key = None
            present = yield from self._signing_key(metadata)
            if present.public_key == known.public_key:
                raise
            return _check(response, asked, present)

    def _exchange(self, request: Request) -> Talk[Response]:
        return exchange(request, self._attempts)


def _check(response: Response, asked: Asked, key: ModelKey) -> bytes:
    if asked.signatures is not None:
        asked.signatures.check(response, asked.body, asked.path, asked.nonce, key)
    header = response.headers.get("garrison-proof")
    if header is None:
        raise ProofError("the answer came without a proof; verify=False (--no-verify) does without")
    try:
        proof = binascii.a2b_base64(header, strict_mode=True)
    except ValueError as error:
        raise ProofError("the answer's proof cannot be read") from error
    public = _key_bytes(key)
    statement = verify_answer(proof, public, request=asked.body, answer=response.body, nonce=asked.nonce)
    if (statement.model, statement.guard) != (key.manifest_digest, key.guard_digest):
        raise ProofError("the answer was signed for another model or guard than the one that was offered")
    return proof


def _key_bytes(key: ModelKey) -> bytes:
    try:
        return bytes.fromhex(key.public_key)
    except ValueError as error:
        raise ProofError("the service's key cannot be read") from error


def _length(response: Response) -> int:
    header = response.headers.get("inference-header-content-length")
    if header is None:
        return ALL_JSON
    if not (header.isascii() and header.isdigit() and len(header) <= _MOST_DIGITS):
        raise ServiceError("the answer's JSON part has no readable length")
    return int(header)


def _fitted(x: Array | Mapping[str, Array], metadata: ModelMetadata) -> dict[str, Array]:
    """The inputs in the model's dtypes.

    Raises:
        InputError: a wrong name or shape, no rows, or values that would change.
    """
    specs = {spec.name: spec for spec in metadata.inputs}
    given = x if isinstance(x, Mapping) else dict.fromkeys(specs, x) if len(specs) == 1 else None
    if given is None:
        raise InputError(f"this model has several inputs; give a dict with {', '.join(map(repr, specs))}")
    if given.keys() != specs.keys():
        raise InputError(f"expected the inputs {', '.join(map(repr, specs))}, found {', '.join(map(repr, given))}")
    fitted = {name: _cast(np.asarray(given[name]), spec) for name, spec in specs.items()}
    rows = {len(values) for values in fitted.values()}
    if len(rows) != 1 or 0 in rows:
        raise InputError(f"expected equally many rows in all inputs, at least 1; found {sorted(rows)}")
    return fitted


def _cast(values: Array, spec: TensorMetadata) -> Array:
    if values.shape[1:] != spec.shape[1:] or values.ndim != len(spec.shape):
        shown = ", ".join(["rows", *map(str, spec.shape[1:])])
        raise InputError(f"input {spec.name!r}: expected shape [{shown}], found {list(values.shape)}")
    dtype: np.dtype[Any] | None = NUMPY_DTYPES.get(spec.datatype)
    if dtype is None:
        raise ServiceError(f"the model takes the unknown datatype {spec.datatype!r}")
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise InputError(f"input {spec.name!r}: {values.dtype} cannot become {dtype} without loss; convert it yourself")
    return np.ascontiguousarray(values, dtype)


def _attested_metadata(metadata: ModelMetadata, attested: Attested) -> ModelMetadata:
    """What a client relies on comes from the attested manifest; the rest stays as the host tells it."""
    model = attested.model
    inputs = tuple(TensorMetadata(i.name, i.datatype, (BATCH_DIMENSION, *i.shape)) for i in model.inputs)
    vouched: dict[str, Any] = {
        "version": str(model.version),
        "task": model.task,
        "labels": model.labels,
        "manifest_digest": attested.manifest_sha256,
        "guard_digest": attested.guard,
    }
    if metadata.garrison is None:  # a host that keeps quiet takes nothing away
        extras = ModelExtras(ranges={}, budget_rows=0, budget_period="ever", **vouched)
    else:
        extras = msgspec.structs.replace(metadata.garrison, **vouched)
    return msgspec.structs.replace(metadata, name=model.name, inputs=inputs, garrison=extras)
