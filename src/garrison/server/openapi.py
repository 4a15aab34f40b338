"""What the server offers over HTTP, as an OpenAPI 3.1 document. The schemas of answers are made of the types that the answers are made of.

It names no model, so that it may be shown to all. What it cannot say: that the number of values in `data` follows from `shape`, and that names, shapes and ranges
must be those that the model's own metadata states.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from garrison import __version__
from garrison.attest.evidence import Evidence
from garrison.protocol.oip_metadata import IndexEntry, KeySet, ModelMetadata, ServerMetadata
from garrison.protocol.sealed import CONTENT_TYPE as _SEALED
from garrison.types import DATATYPES

OPENAPI_PATH = "/v2/openapi.json"
_JSON, _BINARY = "application/json", "application/octet-stream"
_REF, _OF_EVIDENCE = "#/components/schemas/", "Attested."
_MOST_ROWS_TOLD = 16_384

Json = dict[str, Any]

_WORDS = {
    400: "the request is wrong; the message says what",
    401: "a key is needed, or this one is not good",
    403: "the guard refuses, or the key does not cover this",
    404: "no such model, version or path",
    405: "another method",
    408: "the body did not arrive in time",
    409: "a sealed request came twice, or its key is too old",
    413: "too long, or too many rows",
    426: "the owner demands sealed requests",
    428: "a proof of work is needed",
    429: "the budget is used up, or requests come too fast",
    500: "the service failed on this request",
    502: "the model's server gave no answer that can be used",
    503: "try again later",
}
_PAGE_ERRORS = (400, 401, 403, 404, 405)
_INFER_ERRORS = tuple(_WORDS)

_NUMBERS: Json = {
    "type": "array",
    "description": "values in C order, flat or nested as the shape; null for a missing value where one may be missing",
    "items": {"type": ["number", "boolean", "null", "array"]},
}
_PARAMETERS: Json = {"type": ["object", "null"], "description": "what is not known is passed over"}
_BY_HAND: Json = {
    "Error": {
        "type": "object",
        "required": ["error", "code"],
        "properties": {
            "error": {"type": "string", "description": "what happened"},
            "code": {"type": "string", "description": "stable", "examples": ["request.input"]},
        },
    },
    "Live": {"type": "object", "required": ["live"], "properties": {"live": {"const": True}}},
    "Ready": {
        "type": "object",
        "required": ["ready"],
        "properties": {"ready": {"type": "boolean"}, "name": {"type": "string"}},
    },
    "InputTensor": {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {
                "type": "array",
                "items": {"type": "integer"},
                "minItems": 1,
                "description": f"rows first, at most {_MOST_ROWS_TOLD} unless the server's limits say otherwise",
            },
            "datatype": {"enum": sorted(DATATYPES.values())},
            "parameters": _PARAMETERS | {"properties": {"binary_data_size": {"type": ["integer", "null"]}}},
            "data": _NUMBERS | {"type": ["array", "null"]},
        },
    },
    "OutputWanted": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "parameters": _PARAMETERS | {"properties": {"binary_data": {"type": ["boolean", "null"]}}},
        },
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "inputs": {"type": "array", "minItems": 1, "items": {"$ref": f"{_REF}InputTensor"}},
            "outputs": {"type": ["array", "null"], "items": {"$ref": f"{_REF}OutputWanted"}},
            "parameters": _PARAMETERS | {"properties": {"binary_data_output": {"type": "boolean"}}},
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": {"type": "string"},
                        "datatype": {"type": "string"},
                        "shape": {"type": "array", "items": {"type": "integer"}},
                        "parameters": {"type": "object"},
                        "data": {"type": "array"},
                    },
                },
            },
        },
    },
}


@lru_cache(maxsize=1)
def openapi_document() -> Json:
    """The document."""
    kinds = (ServerMetadata, ModelMetadata, IndexEntry, KeySet)
    _, made = msgspec.json.schema_components(kinds, ref_template=_REF + "{name}")
    _, shown = msgspec.json.schema_components([Evidence], ref_template=_REF + _OF_EVIDENCE + "{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Garrison",
            "version": __version__,
            "summary": "Guarded prediction: the Open Inference Protocol v2, with signed answers",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": _BY_HAND | made | {_OF_EVIDENCE + name: schema for name, schema in shown.items()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "where the server uses keys or tokens"}
            },
        },
    }


def _paths() -> Json:
    model, version = _parameter("model"), _parameter("version")
    found: Json = {
        "/v2": {"get": _page("server", "ServerMetadata", open_to_all=True)},
        "/v2/health/live": {"get": _page("live", "Live", open_to_all=True)},
        "/v2/health/ready": {"get": _page("ready", "Ready", open_to_all=True, unready=True)},
        "/v2/repository/index": {"post": _page("index", "IndexEntry", many=True)},
        "/.well-known/garrison/keys": {"get": _page("keys", "KeySet")},
        "/.well-known/garrison/attestation": {"get": _evidence()},
    }
    for path, parameters, suffix in (
        ("/v2/models/{model}", [model], ""),
        ("/v2/models/{model}/versions/{version}", [model, version], "OfVersion"),
    ):
        common = {"parameters": parameters}
        found[path] = common | {"get": _page(f"model{suffix}", "ModelMetadata")}
        found[f"{path}/ready"] = common | {"get": _page(f"modelReady{suffix}", "Ready", unready=True)}
        found[f"{path}/infer"] = common | {"post": _infer(f"infer{suffix}")}
    return found


def _parameter(name: str) -> Json:
    schema = (
        {"type": "string", "minLength": 1} if name == "model" else {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}
    )
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _page(name: str, schema: str, *, open_to_all: bool = False, many: bool = False, unready: bool = False) -> Json:
    ref: Json = {"$ref": f"{_REF}{schema}"}
    content = {_JSON: {"schema": {"type": "array", "items": ref} if many else ref}}
    responses: Json = {"200": {"description": schema, "content": content}} | _errors(_PAGE_ERRORS)
    if unready:
        responses["503"] = {"description": "not now", "content": content}
    return {"operationId": name, "responses": responses} | ({} if open_to_all else _security())


def _evidence() -> Json:
    nonce = {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$", "description": "32 random bytes in base64url"}
    parameters: list[Json] = [
        {"name": "nonce", "in": "query", "required": True, "schema": nonce},
        {"name": "model", "in": "query", "schema": {"type": "string"}},
        {"name": "version", "in": "query", "schema": {"type": "string"}},
    ]
    page = _page("evidence", f"{_OF_EVIDENCE}Evidence")
    return page | {"parameters": parameters, "responses": page["responses"] | _errors((429, 503))}


def _infer(name: str) -> Json:
    whole = {"type": "string", "format": "binary"}
    asked = {
        _JSON: {"schema": {"$ref": f"{_REF}InferRequest"}},
        _BINARY: {"schema": whole | {"description": "JSON, then tensors; see inference-header-content-length"}},
        _SEALED: {"schema": whole | {"description": "only the enclave can read it"}},
    }
    told = asked | {_JSON: {"schema": {"$ref": f"{_REF}InferResponse"}}}
    headers = {
        "garrison-proof": {"description": "the signed proof of the answer, in base64", "schema": {"type": "string"}},
        "ratelimit": {"description": "what the caller has left", "schema": {"type": "string"}},
        "ratelimit-policy": {"description": "what it may ask", "schema": {"type": "string"}},
    }
    return {
        "operationId": name,
        "parameters": [
            _header("inference-header-content-length", "length of the JSON part, where tensors follow it"),
            _header("garrison-nonce", "bound into the signed statement; printable ASCII"),
            _header("garrison-work", "a proof of work"),
            _header("request-timeout", "seconds that the client waits"),
        ],
        "requestBody": {"required": True, "content": asked},
        "responses": {"200": {"description": "the answer", "headers": headers, "content": told}}
        | _errors(_INFER_ERRORS),
    } | _security()


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


def _security() -> Json:
    return {"security": [{"key": []}, {}]}


def _errors(statuses: tuple[int, ...]) -> Json:
    content = {_JSON: {"schema": {"$ref": f"{_REF}Error"}}}
    return {str(status): {"description": _WORDS[status], "content": content} for status in statuses}
