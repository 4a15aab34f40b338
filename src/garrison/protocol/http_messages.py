"""HTTP requests and responses as values, for whoever asks: the clients, and a gateway that asks the model's server."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Request(msgspec.Struct, frozen=True):
    """An HTTP request; `path` begins with "/", header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str] = {}
    body: bytes = b""


class Response(msgspec.Struct, frozen=True):
    """An HTTP response; header names in lower case, of several of one name the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes
