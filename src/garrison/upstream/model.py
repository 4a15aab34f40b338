"""One model on another Open Inference Protocol server: what it says of itself, and its answers, checked.

Invariants: an answer that is not what was asked for (model, request id, tensor, datatype, shape, finite, probabilities) is used for
nothing; nothing that the server sent stands in an error's message. Not checked, because it cannot be: whether the server computes with the
parameters that its owner means, and what it does with the inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from garrison.bundle.manifest import UpstreamEntry
from garrison.crypto.canonical import canonical_json, sha256_hex
from garrison.errors import ServiceError, UnavailableError, UpstreamError
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import DATATYPES, Array, FloatArray
from garrison.upstream.connection import NEVER
from garrison.upstream.forms import AnswerForms, QuestionForms
from garrison.upstream.http import Asked, Connections
from garrison.upstream.stream import after

SUM_TOLERANCE = 1e-3
"""How far the probabilities of one row may be from a sum of 1."""
_FEW = 64
LENGTH_HEADER = "inference-header-content-length"
BINARY_EXTENSION = "binary_tensor_data"
CONFIGURATION_EXTENSION = "model_configuration"

_OK, _NOT_FOUND, _FEWEST_BAD = 200, 404, 400
_RETRYABLE = frozenset({408, 425, 429, 502, 503, 504})
_MOST_DIGITS = 15
_AGAIN = "the model's server cannot answer now; try again"
_WRONG = "the model's server gave no answer that can be used"


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Model(msgspec.Struct):
    name: str
    versions: list[str] | None = None
    platform: str | None = None
    inputs: list[_Tensor] | None = None
    outputs: list[_Tensor] | None = None
    garrison: dict[str, Any] | None = None


class _Server(msgspec.Struct):
    extensions: list[str] | None = None


class _Configuration(msgspec.Struct):
    max_batch_size: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the server describes it; -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """What the server says of a model. Hearsay.

    Attributes:
        binary: whether the server offers tensors in binary form.
        most_rows: rows that a request may carry; None where nothing is said.
        labels: names of the classes, where the server tells them (another Garrison does).
        digest: of the model, likewise.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    binary: bool
    most_rows: int | None = None
    labels: tuple[str, ...] = ()
    digest: str = ""

    @property
    def sha256(self) -> str:
        """Digest of the inputs and outputs."""
        told = {"inputs": self.inputs, "outputs": self.outputs}
        return sha256_hex(canonical_json(told))


def describe(connections: Connections, model: str, version: str, seconds: float) -> Description:
    """Ask a server about one of its models.

    Raises:
        UnavailableError: it cannot be reached, or is not ready.
        UpstreamError: it does not know the model, or describes it in no way that can be read.
    """
    server = _read(_get(connections, "/v2", seconds), _Server)
    found = _read(_get(connections, _path(model, version), seconds), _Model)
    extensions = server.extensions or []
    most_rows = None
    if CONFIGURATION_EXTENSION in extensions:
        configuration = _read(_get(connections, f"{_path(model, version)}/config", seconds), _Configuration)
        most_rows = max(1, configuration.max_batch_size)
    extras = found.garrison or {}
    labels, digest = extras.get("labels", ()), extras.get("manifest_digest", "")
    plain = isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels)
    return Description(
        name=found.name,
        versions=tuple(found.versions or ()),
        platform=found.platform or "",
        inputs=_tensors(found.inputs),
        outputs=_tensors(found.outputs),
        binary=BINARY_EXTENSION in extensions,
        most_rows=most_rows,
        labels=tuple(labels) if plain else (),
        digest=digest if isinstance(digest, str) else "",
    )


def _tensors(found: list[_Tensor] | None) -> tuple[Tensor, ...]:
    return tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in found or ())


def is_ready(connections: Connections, model: str, version: str, seconds: float) -> bool:
    """Whether the server says that it would answer for the model now."""
    try:
        return connections.ask(Request("GET", f"{_path(model, version)}/ready"), seconds).status == _OK
    except (UnavailableError, UpstreamError):
        return False


Parts = Sequence[Mapping[str, Array]]


class Begun(msgspec.Struct, frozen=True, eq=False):
    """A question under way: the rows of each request, its id, and the exchanges."""

    parts: Parts
    ids: Sequence[str]
    asked: Asked


class UpstreamModel:
    """Asks one model. Safe to use from several threads.

    Args:
        connections: to its server.
        entry: which model there, and how it is asked.
        outputs, datatype: length and dtype of one row of the answer; None where they are still to be learned.
        binary: send and ask for tensors in binary form.
        seconds: longest time for one call.
    """

    def __init__(
        self,
        connections: Connections,
        entry: UpstreamEntry,
        *,
        outputs: int | None,
        datatype: np.dtype[Any] | None,
        binary: bool,
        seconds: float,
    ) -> None:
        self.binary = binary
        self._connections = connections
        self._entry = entry
        self._outputs, self._datatype, self._seconds = outputs, datatype, seconds
        self._path = f"{_path(entry.model, entry.version)}/infer"
        self._numbers = itertools.count(1)
        self._question_forms, self._answer_forms = QuestionForms(entry.output), AnswerForms()

    def ask(self, inputs: Mapping[str, Array]) -> FloatArray:
        """What the model answers, shape (rows, outputs): probabilities or logits.

        Args:
            inputs: by name, each (rows, ...); at least one row.

        Raises:
            UnavailableError: try again later; nothing is known to be wrong with the request.
            UpstreamError: no answer that can be used.
        """
        parts, questions, ids = self._questions(inputs)
        return self._joined(self._connections.ask_many(questions, self._seconds), parts, ids)

    def begin(self, inputs: Mapping[str, Array]) -> Begun | None:
        """Ask without waiting for the answer; None where that takes more requests than may be under way at once."""
        parts, questions, ids = self._questions(inputs)
        if len(questions) > self._connections.most:
            return None
        return Begun(parts, ids, self._connections.begin(questions, after(self._seconds)))

    def finish(self, begun: Begun, until: float = NEVER) -> FloatArray:
        """The answer to `begin`; as `ask`.

        Raises:
            WaitingError: not by `until`; this may be called again.
        """
        return self._joined(self._connections.finish(begun.asked, until), begun.parts, begun.ids)

    def _questions(self, inputs: Mapping[str, Array]) -> tuple[Parts, list[Request], list[str]]:
        most = self._entry.most_rows
        rows = len(next(iter(inputs.values())))
        parts: Parts = [inputs]
        if rows > most:
            parts = [{n: x[i : i + most] for n, x in inputs.items()} for i in range(0, rows, most)]
        questions, ids = [], []
        for part in parts:
            ids.append(f"garrison-{next(self._numbers)}")
            questions.append(self._question(part, ids[-1]))
        return parts, questions, ids

    def _joined(self, responses: Sequence[Response], parts: Parts, ids: Sequence[str]) -> FloatArray:
        found = [
            self._answer(response, number, len(next(iter(part.values()))))
            for response, number, part in zip(responses, ids, parts, strict=True)
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _question(self, inputs: Mapping[str, Array], number: str) -> Request:
        tensors = inputs if self._entry.batched else {name: x[0] for name, x in inputs.items()}
        if not self.binary:
            body, _ = encode_request(tensors, binary=False, outputs=(self._entry.output,), request_id=number)
            return Request("POST", self._path, {"content-type": "application/json"}, body)
        body, json_bytes = self._question_forms.write(tensors, number)
        headers = {"content-type": "application/octet-stream", LENGTH_HEADER: str(json_bytes)}
        return Request("POST", self._path, headers, body)

    def _answer(self, response: Response, number: str, rows: int) -> FloatArray:
        body = _body(response)
        length = response.headers.get(LENGTH_HEADER)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) <= _MOST_DIGITS):
            raise UpstreamError(_WRONG)
        json_bytes = ALL_JSON if length is None else int(length)
        values = self._answer_forms.read(body, json_bytes, number)
        return self._checked(self._decoded(body, json_bytes, number) if values is None else values, rows)

    def _decoded(self, body: bytes, json_bytes: int, number: str) -> Array:
        try:
            answer = decode_response(body, json_bytes)
        except ServiceError as error:
            raise UpstreamError(_WRONG) from error
        if answer.id != number or answer.model != self._entry.model:
            raise UpstreamError("the model's server answers something that it was not asked")
        values = answer.outputs.get(self._entry.output)
        if values is None:
            raise UpstreamError(_WRONG)
        if len(answer.outputs) == 1:
            self._answer_forms.learn(body, json_bytes, number, values)
        return values

    def _checked(self, values: Array, rows: int) -> FloatArray:
        if not self._entry.batched:
            values = values.reshape(1, *values.shape)
        fits = values.ndim == 2 and len(values) == rows and self._outputs in (None, values.shape[1])
        if not fits or values.dtype.kind != "f" or self._datatype not in (None, values.dtype):
            raise UpstreamError("the model's server answers in another shape or datatype than the guard was made for")
        if self._entry.gives == "probabilities":
            if not _are_probabilities(values):
                raise UpstreamError("the model's server answers with rows that are no probabilities")
        elif not np.isfinite(values).all():
            raise UpstreamError("the model's server answers with NaN or an infinite value")
        return values


def _are_probabilities(values: FloatArray) -> bool:
    """Whether the rows are not negative and sum to 1, but for rounding. Each comparison is false for NaN."""
    if values.size <= _FEW:  # the usual case, in a third of the time
        rows = values.tolist()
        return all(min(row) >= 0 and abs(math.fsum(row) - 1.0) <= SUM_TOLERANCE for row in rows)
    off = np.abs(values.sum(axis=1, dtype=np.float64) - 1.0)
    return bool((values >= 0).all() and (off <= SUM_TOLERANCE).all())


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities, in the logits' own dtype."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: FloatArray = e / e.sum(axis=1, keepdims=True)
    return found


def fits(found: Tensor, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether a described tensor can take rows of that dtype and shape, with or without a first dimension for rows."""
    if found.name != name or found.datatype != DATATYPES[dtype]:
        return False
    return any(
        len(found.shape) == len(want) and all(n in (-1, m) for n, m in zip(found.shape, want, strict=True))
        for want in (shape, (1, *shape))
    )


def _path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _get(connections: Connections, path: str, seconds: float) -> bytes:
    return _body(connections.ask(Request("GET", path), seconds))


def _body(response: Response) -> bytes:
    """The body of a good answer. What a bad one says is not passed on."""
    status = response.status
    if status == _OK:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UpstreamError(_WRONG)
        return response.body
    if status in _RETRYABLE:
        raise UnavailableError(_AGAIN)
    if status == _NOT_FOUND:
        raise UpstreamError("the model's server does not know this model or version (status 404)")
    raise UpstreamError(f"{_WRONG} (status {status})" if status >= _FEWEST_BAD else _WRONG)


def _read(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError("the model's server describes itself in no way that can be read") from error
