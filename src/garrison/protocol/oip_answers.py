"""Writes the answers of a batch. Those that differ in nothing but their tensors' bytes share one JSON part, which is written once.

Invariant: what is written is what `encode_response`, or for gRPC `encode_message`, writes for the rows of the request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from garrison.protocol.oip import ALL_JSON, GRPC, InferRequest, WantedOutput, encode_response
from garrison.protocol.oip_grpc import encode_message
from garrison.types import Released

_MOST_HEADS = 256

_ENCODER = msgspec.json.Encoder()

_Heads = dict[tuple[tuple[WantedOutput, ...], bool, int], bytes]
"""JSON parts, but for their end."""


class AnswerWriter:
    """For one model.

    Args:
        model, version: as the answers name them.
    """

    def __init__(self, model: str, version: str) -> None:
        self._model, self._version = model, version
        self._heads: dict[Any, _Heads] = {}

    def batch(self, released: Released) -> BatchAnswers:
        """For the answers of one batch."""
        kinds = tuple((name, x.dtype, x.shape[1:]) for name, x in released.outputs.items())
        heads = self._heads.get(kinds)
        if heads is None or len(heads) > _MOST_HEADS:
            heads = self._heads[
                kinds
            ] = {}  # what is released has one form for a model, so there are one or two of these
        return BatchAnswers(released, self._model, self._version, heads)


class BatchAnswers:
    """Answers out of what was released for a batch."""

    def __init__(self, released: Released, model: str, version: str, heads: _Heads) -> None:
        self._released, self._model, self._version, self._heads = released, model, version, heads
        self._plain = True not in released.uncertain.tolist()
        self._rows = {name: (x.tobytes(), x.nbytes // max(1, len(x))) for name, x in released.outputs.items()}

    def write(self, request: InferRequest, start: int) -> tuple[bytes, int]:
        """The body, and the length of its JSON part, `ALL_JSON` where all of it is JSON, `GRPC` where it is a message of gRPC.

        Args:
            request: the request, as read.
            start: its first row in the batch.
        """
        stop = start + request.rows
        if request.grpc:
            return encode_message(request, self._part(start, stop), self._model, self._version), GRPC
        if not self._plain:
            return self._whole(request, start, stop)
        key = request.outputs, request.binary_default, request.rows
        head = self._heads.get(key)
        if head is None:
            body, json_bytes = self._whole(request, start, stop)
            if json_bytes != ALL_JSON and self._is_binary(request):
                self._heads[key] = body[: json_bytes - len(_ending(request.id))]
            return body, json_bytes
        head += _ending(request.id)
        parts = [head]
        for name in [wanted.name for wanted in request.outputs] or self._rows:
            data, size = self._rows[name]
            parts.append(data[start * size : stop * size])
        return b"".join(parts), len(head)

    def _whole(self, request: InferRequest, start: int, stop: int) -> tuple[bytes, int]:
        return encode_response(request, self._part(start, stop), self._model, self._version)

    def _part(self, start: int, stop: int) -> Released:
        released = self._released
        return Released({name: x[start:stop] for name, x in released.outputs.items()}, released.uncertain[start:stop])

    @staticmethod
    def _is_binary(request: InferRequest) -> bool:
        """Whether the JSON part holds no value of a tensor."""
        default = request.binary_default
        return all(default if w.binary is None else w.binary for w in request.outputs) if request.outputs else default


def _ending(request_id: str) -> bytes:
    """How a JSON part ends: with the request's id, where it has one."""
    return b',"id":%b}' % _ENCODER.encode(request_id) if request_id else b"}"
