"""What is sent: a pool of whole HTTP requests in one file, so that no load generator computes anything while it sends.

A pool goes round, but for sealed requests: an enclave opens each of them once, so as many are sealed beforehand as will be sent, within
sessions that are begun beforehand too.
"""

from __future__ import annotations

import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from benchmarks.serving.peers.common import Array, Body

from garrison.client import Client
from garrison.crypto.hpke import ONE_TIME_KEY_BYTES
from garrison.crypto.sessions import SessionKeys
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.protocol.sealed import CONTENT_TYPE, RequestHead, read_answer, seal_request
from garrison.protocol.sealed_session import Bound, Offer, SessionHead, seal_within

ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Pool:
    """A folder with `requests`, one after the other, and `sizes`, the length of each in decimal.

    Attributes:
        once: no request may be sent twice.
    """

    folder: Path
    count: int
    once: bool = False


def write(folder: Path, url: str, bodies: Iterable[Body], *, once: bool = False) -> Pool:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "requests").open("wb") as file:
        sizes = [file.write(raw(url, body)) for body in bodies]
    (folder / "sizes").write_text("\n".join(map(str, sizes)) + "\n")
    return Pool(folder, len(sizes), once)


def raw(url: str, body: Body) -> bytes:
    """The request as it goes over the wire."""
    headers = {"Host": urlsplit(url).netloc, **body.headers, "Content-Length": str(len(body.content))}
    lines = [f"POST {body.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body.content


def encode(x: Array, name: str) -> Body:
    """To Garrison: the Open Inference Protocol with binary tensors."""
    content, json_bytes = encode_request({"x": x})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(json_bytes)}
    return Body(f"/v2/models/{name}/infer", headers, content)


def decode(answer: bytes, json_bytes: int) -> Array:
    return np.asarray(decode_response(answer, json_bytes).outputs["probabilities"], np.float32).ravel()


def sealed(url: str, name: str, rows: Array, count: int) -> Iterator[Body]:
    """Sealed requests, each to be sent once: in sessions that are begun now, and hold for `session_seconds`."""
    plain = [encode_request({"x": x}) for x in rows]
    begun: Begun | None = None
    counter = 0
    for k in range(count):
        if begun is None or counter >= begun.requests:
            begun, counter = begin(url, name, rows[0]), 0
        content, json_bytes = plain[k % len(plain)]
        head = SessionHead(json_bytes, secrets.token_hex(16), int(time.time()))
        envelope, _ = seal_within(begun.keys, begun.session, counter, head, content)
        counter += 1
        yield Body(f"/v2/models/{name}/infer", {"Content-Type": CONTENT_TYPE}, envelope)


@dataclass(frozen=True, slots=True)
class Begun:
    """A session, and what the enclave answered to its first request."""

    session: bytes
    keys: SessionKeys
    requests: int
    answer: Array


def begin(url: str, name: str, x: Array) -> Begun:
    """A session with a freshly attested enclave, by hand; its first request asks for `x`."""
    with Client(url, model=name, sealed=True, allow_simulated=True) as client:
        attested = client.attest()
    keys, offer = attested.keys, Offer(attested.keys.suite)
    content, json_bytes = encode_request({"x": x})
    key = secrets.token_bytes(ONE_TIME_KEY_BYTES)
    head = RequestHead("", json_bytes, secrets.token_hex(16), key, int(time.time()), offer=offer.content)
    envelope = seal_request(keys.suite, keys.hpke, keys.epoch, head, content)
    answer, _ = ask(url, Body(f"/v2/models/{name}/infer", {"Content-Type": CONTENT_TYPE}, envelope))
    said, inside = read_answer(key, answer)
    if said.code or said.grant is None:
        raise OSError(f"{said.code}: {said.detail or 'no session'}")
    bound = Bound(keys.signing, attested.manifest_sha256, attested.guard, "")
    made = offer.take(said.grant, envelope, bound)
    return Begun(said.grant.session, made, said.grant.requests, decode(inside, said.json_bytes))


def ask_sealed(url: str, name: str, x: Array) -> Array:
    """One sealed question, and the answer to it, which is opened."""
    return begin(url, name, x).answer


def ask(url: str, body: Body) -> tuple[bytes, int]:
    """One question by an ordinary client: the answer, and the length of its JSON part, -1 where the answer does not say.

    Raises:
        OSError: no answer, or an error.
    """
    request = urllib.request.Request(url + body.path, body.content, body.headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return answer.read(), int(answer.headers.get("Inference-Header-Content-Length", -1))
    except urllib.error.HTTPError as error:
        raise OSError(f"HTTP {error.code}: {error.read(200).decode(errors='replace')}") from error
