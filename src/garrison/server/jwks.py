"""The public keys of a token issuer, from a file or a URL: cached, bounded, read again in the background.

Invariants: keys are used for `jwks_most_seconds` after they were last read, and not longer; a set that cannot be read changes nothing; the event loop
never waits for the issuer; an unknown key id makes us ask the issuer once in `_UNKNOWN_SECONDS` at most, however many tokens name one. Only public keys of
the kinds that the allowed signatures need are kept: a symmetric key in the set is dropped.

Not checked: whether the file or URL belongs to the issuer. It is the operator who says so.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from garrison.config import URLS, OidcConfig
from garrison.errors import ConfigError, MissingExtraError
from garrison.protocol.addresses import is_loopback

logger = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024
MOST_KEYS = 64
MOST_KID = 256
_TIMEOUT_SECONDS, _MOST_SECONDS = 5.0, 15.0
"""Between two bytes, and for all."""
_UNKNOWN_SECONDS = 30.0
_OK = 200
_LEAST_RSA_BITS, _MOST_RSA_BITS = 2048, 8192
_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


class Jose(NamedTuple):
    """The parts of joserfc that are used. It is loaded where tokens are taken, and nowhere else."""

    jwt: ModuleType
    jws: ModuleType
    jwk: ModuleType
    errors: ModuleType


def jose() -> Jose:
    """Raises `MissingExtraError` where it is not installed."""
    try:
        return Jose(*(importlib.import_module(f"joserfc.{name}") for name in Jose._fields))
    except ImportError as error:
        raise MissingExtraError("joserfc", "oidc") from error


class Keys:
    """The keys of one issuer. `of` is for the event loop; reading is for other threads.

    Args:
        settings: where they are.
        clock: seconds that only grow.

    Raises:
        ConfigError: the file cannot be read, or the URL is not one that may be asked. A URL that does not answer is asked again later.
        MissingExtraError: the library for tokens is not installed.
    """

    def __init__(self, settings: OidcConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._jose = jose()
        self._settings = settings
        self._clock = clock
        self._is_url = settings.jwks.startswith(URLS)
        self._kinds = {_KINDS[algorithm[:2]] for algorithm in settings.algorithms}
        self._context = _context(settings) if self._is_url else None
        self._lock = threading.Lock()
        self._keys: dict[str, Any] = {}
        self._read_at = self._asked_at = -float("inf")
        self.generation = 0
        """Grows when the keys change: what was found good with older ones must be looked at again."""
        try:
            self._read()
        except (OSError, ValueError) as error:
            if not self._is_url:
                raise ConfigError(f"oidc.jwks: {settings.jwks} cannot be used: {error}") from error
            words = "the keys of %s cannot be read (%s); until they can, no token is good"
            logger.warning(words, settings.issuer, error)

    @property
    def usable(self) -> bool:
        """Whether the keys were read lately enough."""
        return self._clock() - self._read_at <= self._settings.jwks_most_seconds

    def of(self, kid: str | None) -> Any | None:
        """The key of this id; without one, the only key where there is only one. None where there is none."""
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def refresh(self) -> None:
        """Read the keys again in the background if it is time for it."""
        wait = self._settings.jwks_seconds if self.usable else min(self._settings.jwks_seconds, _UNKNOWN_SECONDS)
        if self._clock() - self._asked_at >= wait:
            self._begin()

    def look_for(self) -> bool:
        """A token names a key that is not known. Whether the issuer is being asked now."""
        if self._lock.locked():
            return True
        if self._clock() - self._asked_at < _UNKNOWN_SECONDS:
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        if self._lock.locked():
            return
        self._asked_at = self._clock()
        threading.Thread(target=self._try, name="garrison-jwks", daemon=True).start()

    def _try(self) -> None:
        try:
            self._read()
        except (OSError, ValueError, ConfigError) as error:
            logger.warning("the keys of %s cannot be read again: %s", self._settings.issuer, error)

    def _read(self) -> None:
        with self._lock:
            self._asked_at = self._clock()
            data = _fetch(self._settings.jwks, self._context) if self._is_url else _load(Path(self._settings.jwks))
            keys = _parse(data, self._kinds, self._jose)
            if {k: v.thumbprint() for k, v in keys.items()} != {k: v.thumbprint() for k, v in self._keys.items()}:
                self.generation += 1
            self._keys, self._read_at = keys, self._clock()


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


def _parse(data: bytes, kinds: set[str], library: Jose) -> dict[str, Any]:
    """Usable keys by id; one without an id only counts where it is alone.

    Raises:
        ValueError: no key set, or nothing in it that can be used.
    """
    try:
        entries = msgspec.json.decode(data, type=_Set).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("expected a JSON Web Key Set") from error
    if len(entries) > MOST_KEYS:
        raise ValueError(f"expected at most {MOST_KEYS} keys, found {len(entries)}")
    found: dict[str, Any] = {}
    for entry in entries:
        kid = entry.get("kid", "")
        if (
            not isinstance(kid, str)
            or len(kid) > MOST_KID
            or not _is_for_signatures(entry, kinds)
            or not _is_strong(entry)
        ):
            continue
        try:
            key = library.jwk.import_key(
                {name: value for name, value in entry.items() if name not in {"d", "p", "q", "dp", "dq", "qi"}}
            )
        except (library.errors.JoseError, ValueError, TypeError, KeyError) as error:
            logger.warning("a key of the issuer is passed over: %s", error)
            continue
        if kid in found:
            raise ValueError("two keys have the same id")
        found[kid] = key
    if not found:
        raise ValueError("no key in it is good for the signatures that are allowed")
    return found


def _is_for_signatures(entry: dict[str, Any], kinds: set[str]) -> bool:
    kind, operations = entry.get("kty"), entry.get("key_ops", ["verify"])
    if not (isinstance(kind, str) and isinstance(operations, list)):
        return False
    return kind in kinds and entry.get("use", "sig") == "sig" and "verify" in operations


def _is_strong(entry: dict[str, Any]) -> bool:
    """Whether a key's length can be trusted, and checked in reasonable time."""
    if entry.get("kty") != "RSA":
        return True  # the curves that the algorithms name are
    modulus = entry.get("n")
    if not isinstance(modulus, str) or len(modulus) > _MOST_RSA_BITS:
        return False
    try:
        bits = int.from_bytes(base64.urlsafe_b64decode(modulus + "=" * (-len(modulus) % 4)), "big").bit_length()
    except ValueError:
        return False
    return _LEAST_RSA_BITS <= bits <= _MOST_RSA_BITS


def _load(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError("expected a regular file")
    with path.open("rb") as file:
        return _bounded(file.read(MOST_BYTES + 1))


def _fetch(url: str, context: ssl.SSLContext | None) -> bytes:
    """One GET. Redirects are not followed: they would let somebody else say which keys are good."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=context)
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    )
    try:
        connection.connect()
        with _within(_MOST_SECONDS, connection.sock):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"accept": "application/jwk-set+json, application/json"})
            response = connection.getresponse()
            if response.status != _OK:
                raise ValueError(f"the issuer answers {response.status}")
            return _bounded(response.read(MOST_BYTES + 1))
    except http.client.HTTPException as error:
        raise ValueError(f"the issuer does not speak HTTP: {type(error).__name__}") from error
    finally:
        connection.close()


@contextlib.contextmanager
def _within(seconds: float, connected: socket.socket) -> Iterator[None]:
    """End a connection that takes too long: the time limit of a socket begins anew with each byte."""

    def end() -> None:
        # Not `SSLSocket.shutdown`: that first drops the TLS layer, and who reads meanwhile would be given what anybody on the way has sent in plain.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _bounded(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes")
    return data


def _context(settings: OidcConfig) -> ssl.SSLContext | None:
    try:
        parts = urlsplit(settings.jwks)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"oidc.jwks is not a URL: {error}") from error
    if not host or parts.username is not None:
        raise ConfigError("oidc.jwks must be a URL with a host, and without a password")
    if parts.scheme == "http":
        if not is_loopback(host):
            raise ConfigError("oidc.jwks must be https: whoever can change it on the way says which tokens are good")
        return None
    try:
        return ssl.create_default_context(cafile=settings.jwks_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"oidc.jwks_ca: {settings.jwks_ca} holds no certificates that can be read") from error
