"""Tells another service of events by HTTP, signed, and never in the way of serving: `Standard Webhooks` 1.0.

    POST URL
    webhook-id: msg_...            the same at each try
    webhook-timestamp: 1795293437
    webhook-signature: v1,BASE64   HMAC-SHA256 over id.timestamp.body

    {"type":"drift.alarm","timestamp":"2026-11-21T20:37:17Z","data":{...}}

Invariants: `send` never waits; one try ends after `MOST_SECONDS` in all, however slowly the other speaks; no more than `MOST_WAITING` events wait, and one that was tried most is dropped for another, which is counted; HTTPS, or this very machine; no redirect is
followed; what the other answers is not kept. An event holds no value of an input or an answer.

Not covered: events that wait are lost with the server. The receiver must check signature and time, and know an id that it has seen.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import heapq
import hmac
import http.client
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from garrison.bundle.private import why_not_private
from garrison.errors import ConfigError
from garrison.protocol.addresses import is_loopback

logger = logging.getLogger(__name__)

MOST_WAITING = 256
PAUSES = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Seconds between the tries of one event, each up to a quarter longer by chance; then it is given up."""
SECONDS = 5.0
"""For each step of a try: to connect, and for each read and write."""
MOST_SECONDS = 15.0
"""For one try in all, from when the connection stands. An address that does not answer is left after `SECONDS`, and the next one of that name is tried."""
PREFIX = "whsec_"
_LEAST_SECRET, _MOST_SECRET = 24, 64
_MOST_FILE = 4_096
_MOST_ANSWER = 65_536
_CLOSE_SECONDS = 2.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


def read_secret(file: Path) -> bytes:
    """The secret in a file: one line, `whsec_` and 24 to 64 bytes in base64.

    Raises:
        ConfigError: it cannot be read, others may read it, or it holds something else.
    """
    if why := why_not_private(file):
        raise ConfigError(f"the webhook's secret: {why}")
    try:
        text = file.read_bytes()[:_MOST_FILE].decode("ascii").strip()
        found = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except OSError as error:
        raise ConfigError(f"the webhook's secret {file} cannot be read: {error.strerror}") from error
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"the webhook's secret {file} must be one line: {PREFIX} and base64") from error
    if not _LEAST_SECRET <= len(found) <= _MOST_SECRET:
        raise ConfigError(
            f"the webhook's secret {file} must be {_LEAST_SECRET} to {_MOST_SECRET} bytes, found {len(found)}"
        )
    return found


def sign(secret: bytes, message: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature` of Standard Webhooks 1.0, symmetric form."""
    signed = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def check_url(url: str) -> SplitResult:
    """The parts of a webhook's address.

    Raises:
        ConfigError: neither HTTPS nor this machine; or it holds a name and password, or a fragment.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise ConfigError(f"the webhook's address is no URL: {url!r}") from error
    if parts.scheme not in {"http", "https"} or not host or parts.fragment or port == 0 or "\\" in url:
        raise ConfigError(f"the webhook's address must be https://HOST/PATH, found {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the webhook's address must hold no user name and no password: events are signed")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError(f"the webhook's address must be https, or on this machine; found {url!r}")
    return parts


class _Event:
    """One event that waits: `due` by `time.monotonic`."""

    __slots__ = ("body", "due", "id", "tries")

    def __init__(self, body: bytes) -> None:
        self.id = f"msg_{secrets.token_hex(16)}"
        self.body = body
        self.due = time.monotonic()
        self.tries = 0

    def __lt__(self, other: _Event) -> bool:
        return self.due < other.due


class Webhook:
    """Sends events from a thread of its own.

    Args:
        url: where to.
        secret: 24 to 64 bytes.
        ca: file of the certificates that may vouch for the other; None for the system's.
        pauses: see `PAUSES`.
        most_seconds: see `MOST_SECONDS`.

    Attributes:
        sent, dropped: events so far; `dropped` counts those given up too.

    Raises:
        ConfigError: an address that is not allowed, or a file of certificates that cannot be read.
    """

    def __init__(
        self,
        url: str,
        secret: bytes,
        ca: Path | None = None,
        pauses: tuple[float, ...] = PAUSES,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        self._to = check_url(url)
        self._secret = secret
        self._pauses = pauses
        self._most_seconds = most_seconds
        self._context = _context(ca) if self._to.scheme == "https" else None
        self._waiting: list[_Event] = []
        self._wake = threading.Condition()
        self._stopping = False
        self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="garrison-webhook", daemon=True)
        self._thread.start()

    def send(self, kind: str, data: Mapping[str, Any]) -> None:
        """Put an event into the queue. Never waits."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = msgspec.json.encode({"type": kind, "timestamp": now, "data": data})
        with self._wake:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.remove(max(self._waiting, key=lambda event: event.tries))
                heapq.heapify(self._waiting)
                self.dropped += 1
            heapq.heappush(self._waiting, _Event(body))
            self._wake.notify()

    def close(self) -> None:
        """Try what is due once more, for a moment, and end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(_CLOSE_SECONDS)
        left = len(self._waiting)
        if left:
            logger.warning("webhook: %d events were not delivered", left)

    def _work(self) -> None:
        while (event := self._next()) is not None:
            try:
                self._try(event)
            except Exception:  # a thread that ends would end all events
                logger.exception("webhook: an event could not be sent")
                self.dropped += 1

    def _next(self) -> _Event | None:
        """The next event that is due; None to end."""
        with self._wake:
            while True:
                now = time.monotonic()
                if self._waiting and self._waiting[0].due <= now:
                    return heapq.heappop(self._waiting)
                if self._stopping:
                    return None
                self._wake.wait(self._waiting[0].due - now if self._waiting else None)

    def _try(self, event: _Event) -> None:
        try:
            status = self._post(event)
        except (OSError, http.client.HTTPException) as error:
            status, why = 0, f"{type(error).__name__}"
        else:
            why = f"status {status}"
        if 200 <= status < 300:
            self.sent += 1
            return
        event.tries += 1
        if (status and status not in _AGAIN) or event.tries > len(self._pauses) or self._stopping:
            self.dropped += 1
            logger.error("webhook: event %s is given up after %d tries: %s", event.id, event.tries, why)
            return
        pause = self._pauses[event.tries - 1] * (1 + secrets.randbelow(256) / 1024)
        logger.warning("webhook: event %s was not taken (%s); again in %.0f s", event.id, why, pause)
        event.due = time.monotonic() + pause
        with self._wake:
            heapq.heappush(self._waiting, event)

    def _post(self, event: _Event) -> int:
        to, now = self._to, int(time.time())
        host = to.hostname or ""
        connection = (
            http.client.HTTPConnection(host, to.port, timeout=SECONDS)
            if self._context is None
            else http.client.HTTPSConnection(host, to.port, timeout=SECONDS, context=self._context)
        )
        headers = {
            "content-type": "application/json",
            "user-agent": "garrison",
            "webhook-id": event.id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self._secret, event.id, now, event.body),
        }
        bound = threading.Timer(self._most_seconds, _cut, (connection,))
        bound.daemon = True
        bound.start()
        try:
            connection.request("POST", (to.path or "/") + (f"?{to.query}" if to.query else ""), event.body, headers)
            answer = connection.getresponse()
            with suppress(OSError, http.client.HTTPException):  # its status is what counts
                answer.read(_MOST_ANSWER)
            return answer.status
        finally:
            bound.cancel()
            connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection under whoever reads from it, or shakes hands."""
    made: socket.socket | None = connection.sock
    if made is not None:
        with suppress(OSError):
            socket.socket.shutdown(made, socket.SHUT_RDWR)


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the webhook's certificates {ca} cannot be read") from error
