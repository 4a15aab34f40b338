"""Who asks: by API key, by the token of an identity provider, by the client's certificate, or by address where none of these is used.

    key            `Authorization: Bearer gk_<caller>_<secret>`: the caller's name (garrison.server.key_file)
    token          `Authorization: Bearer <JWT>`: `oidc:SUBJECT` (garrison.server.tokens)
    certificate    `cert:NAME` (garrison.server.client_names); where keys or tokens are used too, both must name the same caller
    address        `ip:ADDRESS`, of IPv6 the /64 network

Invariants: a key file that cannot be read lets nobody in, and tells who shows a key to try again, for the key may be good; comparisons take the same time wherever they fail; what was found good is remembered by the whole
header, until it ends or the keys change.

Not checked: whether two callers are one person. Without keys a caller is an address, which anybody who has many of them can change; `X-Forwarded-For` is not
believed.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from garrison.config import OidcConfig
from garrison.errors import AuthenticationError, ConfigError, UnavailableError
from garrison.server.identity import NEVER, Identity, read_scopes
from garrison.server.key_file import PREFIX, KeyEntry, KeyRing, add_key, digest, read_keys, revoke_key, rotate_key
from garrison.server.tokens import SUBJECT, Tokens

__all__ = [
    "ADDRESS",
    "CERTIFICATE",
    "SUBJECT",
    "Authenticator",
    "KeyEntry",
    "KeyRing",
    "add_key",
    "by_address",
    "read_keys",
    "revoke_key",
    "rotate_key",
]

logger = logging.getLogger(__name__)

ADDRESS = "ip:"
"""What the id of a caller without a key begins with."""
CERTIFICATE = "cert:"
"""What the id of a caller begins with who is named by its certificate."""
_SCHEME = "bearer"  # in any case, as RFC 9110 has it
_NOBODY = digest("")
_MOST_CACHED = 4096
_MOST_KEY_CHARACTERS = 256

NameOf = Callable[[str], str | None]
"""From "address:port" of a connection to the name in its client's certificate."""


class Authenticator:
    """Tells callers apart.

    Args:
        path: the key file, or None where there are no keys.
        oidc: whose tokens are taken; None, or without an issuer, for nobody's.
        name_of: says whose certificate a connection showed; None where certificates name nobody.
        clock: seconds since the epoch.

    Raises:
        ConfigError: the key file cannot be read, or the issuer's keys cannot be had as set.
        MissingExtraError: tokens are to be taken, and their library is not installed.
    """

    def __init__(
        self,
        path: Path | None,
        oidc: OidcConfig | None = None,
        name_of: NameOf | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._clock = clock
        self.limits = (False, False)
        """Whether the key file limits anybody's rows a day, and anybody's requests a second."""
        self._take(KeyRing() if path is None else read_keys(path))
        self._broken = ""
        """Why the key file cannot be read; "" where it can."""
        self._stamp = _stamp(path)
        self._tokens = Tokens(oidc, clock) if oidc is not None and oidc.issuer else None
        self._generation = 0 if self._tokens is None else self._tokens.keys.generation
        self._name_of = name_of
        self._help = _help(keys=path is not None, issuer="" if self._tokens is None or oidc is None else oidc.issuer)
        self._known: dict[str, Identity] = {}

    def entry(self, caller: str) -> KeyEntry | None:
        """What the key file says of a caller."""
        return self._ring.keys.get(caller)

    def caller(self, header: str | None, peer: str) -> str:
        """The caller's id; see `identify`."""
        return self.identify(header, peer).name

    def identify(self, header: str | None, peer: str) -> Identity:
        """Who asks.

        Args:
            header: value of `Authorization`.
            peer: "address:port".

        Raises:
            AuthenticationError: nobody who may ask.
            UnavailableError: it is a key, and the key file cannot be read just now; or a token, and the issuer's keys are not known.
        """
        named = None if self._name_of is None else self._named(peer)
        if self._path is None and self._tokens is None:
            return by_address(peer.rpartition(":")[0]) if named is None else named
        if header is None:
            raise AuthenticationError(f"a key is needed: {self._help}")
        # Only headers that were found good are remembered. A dict compares a string only after its keyed hash fits.
        known = self._known.get(header)
        if known is None or known.until <= self._clock():
            known = self._check(header)
        if named is not None and named.name.removeprefix(CERTIFICATE) != known.name.removeprefix(SUBJECT):
            raise AuthenticationError("the key or token is not that of the client certificate's owner")
        return known

    def refresh(self, *, now: bool = False) -> None:
        """Look for changed keys; called now and then while serving.

        Args:
            now: read the key file again even where it looks unchanged.
        """
        if self._tokens is not None:
            self._tokens.keys.refresh()
            if self._generation != self._tokens.keys.generation or not self._tokens.keys.usable:
                self._generation = self._tokens.keys.generation
                self._known.clear()
        stamp = _stamp(self._path)
        if self._path is None or (stamp == self._stamp and not now and not self._broken):
            return
        self._stamp = stamp
        self._known.clear()
        try:
            self._take(read_keys(self._path))
            self._broken = ""
            logger.info("the key file was read again; it holds %d keys", len(self._ring.keys))
        except ConfigError as error:
            self._lose_keys(str(error))

    def _lose_keys(self, why: str) -> None:
        """No key is good: the last good ones may be revoked by now. The file is tried again each time: a mended one may look the same from outside."""
        self._take(KeyRing())
        if why != self._broken:
            logger.error("the key file cannot be read; until it can, whoever shows a key gets 503: %s", why)
        self._broken = why

    def _take(self, ring: KeyRing) -> None:
        self._ring = ring
        entries = ring.keys.values()
        self.limits = any(e.rows_per_day for e in entries), any(e.requests_per_second for e in entries)

    def _named(self, peer: str) -> Identity:
        name = self._name_of(peer) if self._name_of is not None else None
        if name is None:  # somebody of this machine found the inner socket
            raise AuthenticationError("the connection did not come with a client certificate")
        return Identity(CERTIFICATE + name)

    def _check(self, header: str) -> Identity:
        self._known.pop(header, None)
        scheme, _, shown = header.partition(" ")
        shown = shown.strip()
        known = scheme.lower() == _SCHEME
        if known and shown.startswith(PREFIX):
            found = self._by_key(shown)
        elif known and self._tokens is not None:
            found = self._tokens.identify(shown)
        else:
            raise AuthenticationError(f"the key is not known: {self._help}")
        if found.until <= self._clock():
            raise AuthenticationError("the key or token has ended")
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        self._known[header] = found
        return found

    def _by_key(self, key: str) -> Identity:
        if self._broken:
            raise UnavailableError("keys cannot be checked just now; try again")
        if len(key) <= _MOST_KEY_CHARACTERS and key.isascii():
            caller, _, secret = key.removeprefix(PREFIX).rpartition("_")
            entry, found = self._ring.keys.get(caller), digest(secret)
            kept = [(_NOBODY, NEVER)] if entry is None else [(s.sha256, _seconds(s.ends)) for s in entry.secrets]
            good = [ends for sha256, ends in kept if hmac.compare_digest(found, sha256)]
            if good and entry is not None:
                return Identity(caller, read_scopes(entry.scopes), max(good))
        raise AuthenticationError(f"the key is not known: {self._help}")


def _help(*, keys: bool, issuer: str) -> str:
    ways = ["'Authorization: Bearer gk_...', as `garrison keys add` printed it"] if keys else []
    return "send " + ", or ".join([*ways, f"'Authorization: Bearer ...' with a token of {issuer}"] if issuer else ways)


def _seconds(ends: datetime | None) -> float:
    return NEVER if ends is None else ends.astimezone(UTC).timestamp()


@lru_cache(maxsize=_MOST_CACHED)
def by_address(host: str) -> Identity:
    """Who asks where neither keys nor tokens nor certificates are used."""
    return Identity(_address(host))


def _address(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return f"{ADDRESS}unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return f"{ADDRESS}{ipaddress.IPv6Network((address, 64), strict=False)}"
        address = address.ipv4_mapped
    return f"{ADDRESS}{address}"


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
