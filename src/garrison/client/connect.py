"""A local proxy's core: what an unmodified Open Inference Protocol client says in the open on this machine goes on under seal.

An inference request is sealed to the attested enclave and its answer checked, as `garrison.client.sealed` says; where the service asks for a proof of work,
it is made (`garrison.client.connect_work`). Reading requests
(GET) of the protocol's pages are passed through as they are; **their answers are the host's word**. Nothing else is answered.

Invariant: no body that a local client sent leaves this machine but under seal.

Not covered: the way between the local client and this proxy is open to whoever may read this machine's loopback or memory, and
every local user may ask through it, with its API key. Requests that a browser's page sends are refused (by `Origin`, `Sec-Fetch-Site` and `Host`).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec

from garrison.attest.policy import Policy
from garrison.client.connect_work import Worker
from garrison.client.names import caller_of
from garrison.client.sealed import Attested, SealedChannel
from garrison.client.talk import Talk, Unreachable, bearer, decode, exchange
from garrison.errors import (
    AttestationError,
    GarrisonError,
    MalformedRequestError,
    MethodError,
    NotFoundError,
    ServiceError,
    UnavailableError,
)
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.http_status import STATUS
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.oip_metadata import IndexEntry

LENGTH_HEADER = "inference-header-content-length"
ATTESTED_HEADER = "garrison-attested"
NONCE_HEADER = "garrison-nonce"
PROOF_HEADER = "garrison-proof"
_FETCH_HEADER = (
    "sec-fetch-site"  # browsers put it on every request, and no page can; "none": the user typed the address
)
INDEX_PATH = "/v2/repository/index"
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_PAGES = ("/v2", "/.well-known/garrison/")
_LOCAL_HOSTS = re.compile(r"(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
_MOST_DIGITS = 15
_BAD_GATEWAY = 502
_PASSED_ON = ("content-type", "retry-after")


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """What a local client asks; `target` is path and query as sent, header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


class _ErrorBody(msgspec.Struct):
    error: str
    code: str


class Proxy:
    """One server behind a seal.

    Args:
        policy: what is demanded of evidence.
        api_key: shown to the server for every local client.
        attempts: how often a request is tried while the server cannot be reached or has no time.
        caller: see `garrison.client.names.caller_of`.
    """

    def __init__(self, policy: Policy, *, api_key: str | None, attempts: int, caller: str = "") -> None:
        self._headers = bearer(api_key)
        self._attempts = attempts
        self._channel = SealedChannel(policy, api_key=api_key, attempts=attempts, caller=caller)
        self._worker = Worker(self._channel, caller_of(api_key, caller), self._headers, attempts)

    def answer(self, request: LocalRequest) -> Talk[LocalAnswer]:
        """The answer to a local client; errors are answers too."""
        try:
            return (yield from self._answer(request))
        except GarrisonError as error:
            return error_answer(error)

    def attest_all(self) -> Talk[list[Attested]]:
        """The newest version of each model that the server names, attested.

        Raises:
            AttestationError: evidence that is not good enough.
        """
        response = yield from exchange(Request("POST", INDEX_PATH, dict(self._headers)), self._attempts)
        index = decode(response.body, tuple[IndexEntry, ...], "the list of models")
        found = []
        for name in sorted({entry.name for entry in index}):
            found.append((yield from self._channel.attested(name, None)))  # noqa: PERF401  a generator cannot yield from within
        return found

    def _answer(self, request: LocalRequest) -> Talk[LocalAnswer]:
        _check_local(request.headers)
        path = request.target.partition("?")[0]
        infer = _INFER.fullmatch(path)
        if infer is not None:
            if request.method != "POST":
                raise MethodError(f"expected POST, found {request.method[:16]}")
            return (yield from self._infer(unquote(infer[1]), infer[2] and unquote(infer[2]), request))
        if request.method == "POST" and path == INDEX_PATH:
            return (yield from self._pass_on("POST", path))
        if not path.startswith(_PAGES):
            raise NotFoundError(f"this proxy hands on the Open Inference Protocol alone, found {path[:128]!r}")
        if request.method not in {"GET", "HEAD"}:
            raise MethodError("this proxy seals inference requests, and passes GET on; it hands on nothing else")
        return (yield from self._pass_on("GET", request.target))

    def _infer(self, model: str, version: str | None, request: LocalRequest) -> Talk[LocalAnswer]:
        json_bytes = _json_bytes(request.headers)
        found = yield from self._worker.ask(model, version, request.body, json_bytes, request.headers.get(NONCE_HEADER))
        proof = binascii.b2a_base64(found.proof, newline=False).decode()
        headers: list[tuple[str, str]] = [(ATTESTED_HEADER, found.attested.report.technology), (PROOF_HEADER, proof)]
        if found.json_bytes == ALL_JSON:
            headers.append(("content-type", "application/json"))
        else:
            headers += [("content-type", "application/octet-stream"), (LENGTH_HEADER, str(found.json_bytes))]
        return LocalAnswer(200, headers, found.body)

    def _pass_on(self, method: str, target: str) -> Talk[LocalAnswer]:
        found = yield Request(method, target, dict(self._headers))
        if not isinstance(found, Response):
            raise UnavailableError(
                f"the server cannot be reached: {found.reason if isinstance(found, Unreachable) else ''}"
            )
        headers = [(name, found.headers[name]) for name in _PASSED_ON if name in found.headers]
        return LocalAnswer(found.status, headers, found.body)


def error_answer(error: GarrisonError) -> LocalAnswer:
    """An error as a local client sees it. What the server or its evidence did wrong is a 502."""
    message = str(error)
    if isinstance(error, AttestationError):
        message = f"nothing was sent: {message}"
    status = STATUS.get(error.code, _BAD_GATEWAY)
    code = error.code if error.code in STATUS or isinstance(error, ServiceError) else ServiceError.code
    body = msgspec.json.encode(_ErrorBody(message, code))
    return LocalAnswer(status, [("content-type", "application/json")], body)


def _check_local(headers: Mapping[str, str]) -> None:
    """Refuses what a web page in this machine's browser could send."""
    if (
        "origin" in headers
        or headers.get(_FETCH_HEADER, "none") != "none"
        or not _LOCAL_HOSTS.fullmatch(headers.get("host", ""))
    ):
        raise MalformedRequestError(
            "this proxy answers local programs alone: no Origin, no page that fetches, and a Host of this machine"
        )


def _json_bytes(headers: Mapping[str, str]) -> int:
    if headers.get("content-encoding", "identity") != "identity":
        raise MalformedRequestError("compressed bodies are not read; send this one as it is")
    length = headers.get(LENGTH_HEADER)
    if length is None:
        return ALL_JSON
    if not (length.isascii() and length.isdigit() and len(length) <= _MOST_DIGITS):
        raise MalformedRequestError(f"the header {LENGTH_HEADER} must be a number of bytes, found {length[:32]!r}")
    return int(length)
