"""A load generator that checks every answer: keep-alive connections that ask again as soon as they are answered, one thread, no framework.

Of each answer with status 200 are checked: the enclave's signature, by the path from this answer to the batch's signed root (the root's Ed25519 signature is verified
once a batch); that it is the answer to this request (digest, fresh nonce) by this model and guard; that it is these bytes. What was answered is kept,
16 bytes an answer, so that a ledger can be held against it afterwards.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import json
import re
import secrets
import select
import socket
import time
import urllib.request
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from garrison.crypto.signing import verify_ed25519
from garrison.errors import ProofError
from garrison.protocol.statement import read_proof, signed_message
from garrison.server.ledger.reader import answers_of

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_PROOF = re.compile(rb"\r\ngarrison-proof: *([^\r]+)\r\n", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: *(\d+)\r\n", re.IGNORECASE)
_BATCHES, _WAIT_SECONDS, _ONE_IN = 4_096, 0.2, 16
_GAP = 0.02
"""Pause of a connection that was refused or broke, in seconds."""
_DIGEST_BYTES, _MOST_TIMES = 8, 255


class Keys:
    """Who signs: the keys that a server names, those that it named before too, as an enclave that was started anew has a fresh one.

    Args:
        url: of the server.
        api_key: to be shown keys, where the server knows callers.
    """

    def __init__(self, url: str, api_key: str = "") -> None:
        self._request = urllib.request.Request(f"{url}/.well-known/garrison/keys")
        if api_key:
            self._request.add_header("Authorization", f"Bearer {api_key}")
        self._known: dict[bytes, tuple[str, str]] = {}
        self._batches: dict[bytes, bytes] = {}
        self.refresh()

    def refresh(self) -> None:
        with urllib.request.urlopen(self._request, timeout=10) as answer:
            (key,) = json.load(answer)["keys"]
        self._known[bytes.fromhex(key["public_key"])] = key["manifest_digest"], key["guard_digest"]

    def check(self, proof: bytes, request: str, answer: bytes, nonce: str) -> None:
        """Whether an answer is the one that was signed for this request.

        Raises:
            ProofError: it is not.
        """
        decoded, said = read_proof(proof)
        model = self._signed_by(decoded.signature, signed_message(decoded))
        found = said.request, said.answer, said.nonce, said.model, said.guard
        if found != (request, hashlib.sha256(answer).hexdigest(), nonce, *model):
            raise ProofError(f"another answer than this one was signed: {said}")

    def _signed_by(self, signature: bytes, message: bytes) -> tuple[str, str]:
        """Digests of model and guard that go with the key."""
        public = self._batches.get(signature + message)
        if public is None:
            public = self._verify(signature, message)
            if len(self._batches) >= _BATCHES:
                self._batches.clear()
            self._batches[signature + message] = public
        return self._known[public]

    def _verify(self, signature: bytes, message: bytes) -> bytes:
        for last in (False, True):
            for public in reversed(self._known):
                try:
                    verify_ed25519(public, signature, message)
                except ProofError:
                    continue
                return public
            if not last:
                with contextlib.suppress(OSError):
                    self.refresh()
        raise ProofError("the signature holds under no key that the server has named")


@dataclass
class Told:
    """What came back.

    Attributes:
        statuses: answers by HTTP status; `codes` by the code in the body of those that are not 200.
        unproved: answers with status 200 that do not hold, and why; `wrong` those that say something else than is expected.
        mute: refusals with 503 that name no time to come again.
        broken: requests whose connection ended before an answer: nobody knows what became of them.
        answered: numbers of the requests with a proved answer, and the first bytes of its digest.
        sent: requests.
        latencies: in seconds, of one answer in 16.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    unproved: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    mute: int = 0
    broken: int = 0
    sent: int = 0
    answered: array[int] = field(default_factory=lambda: array("Q"))
    digests: array[int] = field(default_factory=lambda: array("Q"))
    latencies: list[float] = field(default_factory=list)
    good_times: array[float] = field(default_factory=lambda: array("d"))

    @property
    def errors(self) -> int:
        """All that is no proved answer."""
        refused = sum(count for status, count in self.statuses.items() if status != 200)
        return refused + self.broken + len(self.unproved) + len(self.wrong)


class _Connection:
    """One connection: at most one request is under way.

    Attributes:
        asked: the request's number; -1 for none.
        free: when it may ask again.
    """

    __slots__ = ("address", "asked", "buffer", "free", "head", "row", "sent", "socket")

    def __init__(self, address: tuple[str, int], head: bytes) -> None:
        self.address, self.head = address, head
        self.socket: socket.socket | None = None
        self.buffer = bytearray()
        self.asked, self.row, self.sent, self.free = -1, 0, 0.0, 0.0

    def send(self, data: bytes) -> None:
        if self.socket is None:
            self.socket = socket.create_connection(self.address, timeout=10)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(data)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket, self.asked = None, -1
        self.buffer.clear()


class ProvedLoad:
    """See the module's docstring.

    Args:
        url: of the server.
        path: of the model's `infer`.
        bodies: with their JSON's length; asked one after the other, each connection begins elsewhere.
        api_keys: one a connection, taken in turn; none where the server knows no callers.
        check: what is wrong with an answer's body to the body of that number; "" for nothing.
        keeps: whether times of good answers are kept.
    """

    def __init__(
        self,
        url: str,
        path: str,
        bodies: Sequence[tuple[bytes, int]],
        *,
        connections: int = 32,
        api_keys: Sequence[str] = (),
        check: Callable[[int, bytes], str] | None = None,
        keeps: bool = False,
    ) -> None:
        parts = urlsplit(url)
        self.address = parts.hostname or "", parts.port or 0
        self.keys = Keys(url, api_keys[0] if api_keys else "")
        self.told = Told()
        self._run = secrets.token_hex(4)
        self._bodies, self._check, self._keeps = bodies, check, keeps
        self._digests = [hashlib.sha256(body).hexdigest() for body, _ in bodies]
        self._tails = [
            f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n".encode()
            for body, length in bodies
        ]
        self._connections = []
        for k in range(connections):
            who = f"Authorization: Bearer {api_keys[k % len(api_keys)]}\r\n" if api_keys else ""
            head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{who}".encode()
            one = _Connection(self.address, head)
            one.row = k * len(bodies) // connections
            self._connections.append(one)

    def run(self, until: Callable[[], bool]) -> Told:
        """Ask until told to stop, and then wait for what is under way."""
        poll, by_descriptor = select.epoll(), {}
        try:
            stopping = False
            while True:
                stopping = stopping or until()
                now = time.monotonic()
                for one in self._connections:
                    if one.asked < 0 and not stopping and one.free <= now:
                        fresh = one.socket is None
                        if self._ask(one) and fresh and one.socket is not None:
                            poll.register(one.socket.fileno(), select.EPOLLIN)
                            by_descriptor[one.socket.fileno()] = one
                if stopping and all(one.asked < 0 for one in self._connections):
                    return self.told
                for descriptor, _ in poll.poll(_WAIT_SECONDS if stopping else _GAP):
                    self._receive(by_descriptor[descriptor])
        finally:
            poll.close()
            for one in self._connections:
                one.close()

    def nonce(self, number: int) -> str:
        return f"{self._run}-{number}"

    def _ask(self, one: _Connection) -> bool:
        told, row = self.told, one.row
        one.row = (row + 1) % len(self._bodies)
        number, told.sent = told.sent, told.sent + 1
        one.asked, one.sent = number, time.monotonic()
        nonce = b"Garrison-Nonce: %b\r\n" % self.nonce(number).encode()
        try:
            one.send(b"".join((one.head, nonce, self._tails[row], b"\r\n", self._bodies[row][0])))
        except OSError:
            self._break(one)
            return False
        return True

    def _break(self, one: _Connection) -> None:
        self.told.broken += 1
        one.close()
        one.free = time.monotonic() + _GAP

    def _receive(self, one: _Connection) -> None:
        if one.socket is None:
            return
        try:
            data = one.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._end(one)
            return
        one.buffer += data
        end = one.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(one.buffer[: end + 4])
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if len(one.buffer) < end + 4 + length:
            return
        body = bytes(one.buffer[end + 4 :])
        one.buffer.clear()
        self._note(one, head, body)

    def _end(self, one: _Connection) -> None:
        """The server has closed it: an idle one is opened anew, one with a request under way has lost it."""
        if one.asked >= 0:
            self._break(one)
        else:
            one.close()

    def _note(self, one: _Connection, head: bytes, body: bytes) -> None:
        told, number, now = self.told, one.asked, time.monotonic()
        row = (one.row - 1) % len(self._bodies)
        one.asked = -1
        status = int(head[9:12])
        told.statuses[status] += 1
        if status != 200:
            told.codes[str(json.loads(body)["code"])] += 1
            told.mute += status == 503 and _RETRY.search(head) is None
            one.free = now + _GAP
            return
        proof = _PROOF.search(head)
        try:
            if proof is None:
                raise ProofError("there is no proof")
            self.keys.check(binascii.a2b_base64(proof[1]), self._digests[row], body, self.nonce(number))
        except (ProofError, ValueError) as error:
            told.unproved.append(f"request {number}: {error}")
            return
        if self._check is not None and (why := self._check(row, body)):
            told.wrong.append(f"request {number}: {why}")
        told.answered.append(number)
        told.digests.append(int.from_bytes(hashlib.sha256(body).digest()[:_DIGEST_BYTES]))
        if self._keeps:
            told.good_times.append(now)
        if not number % _ONE_IN:
            told.latencies.append(now - one.sent)


@dataclass(frozen=True, slots=True)
class Held:
    """A ledger against what clients were answered.

    Attributes:
        entries: of this load, with code "ok".
        missing: answers that stand nowhere; `doubled`, more than once; `other`, with another digest.
        unclaimed: entries of requests whose answer did not reach its client.
        strange: entries of no request of this load.
    """

    entries: int
    missing: int
    doubled: int
    other: int
    unclaimed: int
    strange: int


def hold_against(ledger: Path, load: ProvedLoad) -> Held:
    """Look up every answer in the ledger, by nonce and digest."""
    told, prefix = load.told, load.nonce(0)[:-1]
    numbers = np.frombuffer(told.answered, np.uint64).astype(np.int64)
    digests = np.zeros(told.sent, np.uint64)
    digests[numbers] = np.frombuffer(told.digests, np.uint64)
    got, times = np.zeros(told.sent, np.bool_), np.zeros(told.sent, np.uint8)
    got[numbers] = True
    other = strange = entries = 0
    for code, nonce, digest in _entries(ledger):
        if not nonce.startswith(prefix):
            strange += 1
        elif code == "ok":
            number = int(nonce[len(prefix) :])
            entries += 1
            times[number] += times[number] < _MOST_TIMES
            other += bool(got[number]) and int(digests[number]) != digest
    return Held(
        entries=entries,
        missing=int(np.sum(got & (times == 0))),
        doubled=int(np.sum(times > 1)),
        other=other,
        unclaimed=int(np.sum(~got & (times > 0))),
        strange=strange,
    )


def _entries(ledger: Path) -> Iterable[tuple[str, str, int]]:
    for row in answers_of(ledger):
        yield row.entry.code, row.entry.nonce, int(row.entry.answer[: 2 * _DIGEST_BYTES] or "0", 16)
