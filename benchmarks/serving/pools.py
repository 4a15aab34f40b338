"""What is sent: a pool of whole HTTP requests in one file, so that no load generator computes anything while it sends.

A pool goes round, but for sealed requests: an enclave opens each of them once, so as many are sealed beforehand as will be sent.
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
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.protocol.sealed import CONTENT_TYPE, RequestHead, read_answer, seal_request

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
    """Freshly attested and sealed requests, each to be sent once."""
    with Client(url, model=name, sealed=True, allow_simulated=True) as client:
        keys = client.attest().keys
    plain = [encode_request({"x": x}) for x in rows]
    for k in range(count):
        content, json_bytes = plain[k % len(plain)]
        key = secrets.token_bytes(ONE_TIME_KEY_BYTES)
        head = RequestHead("", json_bytes, secrets.token_hex(16), key, int(time.time()))
        envelope = seal_request(keys.suite, keys.hpke, keys.epoch, head, content)
        yield Body(f"/v2/models/{name}/infer", {"Content-Type": CONTENT_TYPE}, envelope)


def ask_sealed(url: str, name: str, x: Array) -> Array:
    """One sealed question, by hand as `sealed` writes them; its answer is opened."""
    with Client(url, model=name, sealed=True, allow_simulated=True) as client:
        keys = client.attest().keys
    content, json_bytes = encode_request({"x": x})
    key = secrets.token_bytes(ONE_TIME_KEY_BYTES)
    head = RequestHead("", json_bytes, secrets.token_hex(16), key, int(time.time()))
    envelope = seal_request(keys.suite, keys.hpke, keys.epoch, head, content)
    answer, _ = ask(url, Body(f"/v2/models/{name}/infer", {"Content-Type": CONTENT_TYPE}, envelope))
    said, inside = read_answer(key, answer)
    if said.code:
        raise OSError(f"{said.code}: {said.detail}")
    return decode(inside, said.json_bytes)


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
