"""The messages of gRPC that hold no tensor: names in, pages out. Pages are `App`'s own, written anew as messages."""

from __future__ import annotations

from typing import Any

import msgspec

from garrison.errors import LimitError
from garrison.limits import Limits
from garrison.protocol.protobuf import Fields, field, flag, packed, string, varint
from garrison.server.http_errors import Answer

_SERVING, _NOT_SERVING = 1, 2
EXTRAS = "garrison"
"""Among a model's properties: what HTTP's metadata says of the guard, as JSON."""


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Model(msgspec.Struct):
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    garrison: msgspec.Raw = msgspec.Raw(b"{}")


class _Server(msgspec.Struct):
    name: str
    version: str
    extensions: tuple[str, ...] = ()


def read_names(body: bytes, limits: Limits) -> tuple[str, str]:
    """Name and version, of a message that holds nothing else.

    Raises:
        MalformedRequestError, LimitError: it is no such message.
    """
    if len(body) > 4 * limits.string_bytes:
        raise LimitError(f"a name may have {limits.string_bytes} bytes")
    fields = Fields(body, 0, len(body))
    return fields.text(1), fields.text(2)


def write_flag(*, value: bool) -> bytes:
    """`ServerLiveResponse`, `ServerReadyResponse`, `ModelReadyResponse`."""
    return flag(1, value=value)


def write_health(*, serving: bool) -> bytes:
    """`grpc.health.v1.HealthCheckResponse`."""
    return b"\x08" + varint(_SERVING if serving else _NOT_SERVING)


def write_server(page: Answer) -> bytes:
    """`ServerMetadataResponse`."""
    found = msgspec.json.decode(page.body, type=_Server)
    return b"".join(
        (string(1, found.name), string(2, found.version), *(field(3, e.encode()) for e in found.extensions))
    )


def write_model(page: Answer) -> bytes:
    """`ModelMetadataResponse`."""
    found = msgspec.json.decode(page.body, type=_Model)
    parts = [string(1, found.name), *(field(2, v.encode()) for v in found.versions), string(3, found.platform)]
    parts += [field(4, _tensor(tensor)) for tensor in found.inputs]
    parts += [field(5, _tensor(tensor)) for tensor in found.outputs]
    parts.append(field(6, string(1, EXTRAS) + string(2, bytes(found.garrison).decode())))
    return b"".join(parts)


def write_index(page: Answer) -> bytes:
    """`RepositoryIndexResponse`."""
    found: list[dict[str, Any]] = msgspec.json.decode(page.body)
    names = ("name", "version", "state", "reason")
    return b"".join(field(1, b"".join(string(i + 1, entry[n]) for i, n in enumerate(names))) for entry in found)


def _tensor(tensor: _Tensor) -> bytes:
    return string(1, tensor.name) + string(2, tensor.datatype) + packed(3, tensor.shape)
