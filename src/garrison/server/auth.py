"""Who asks: API keys, kept as hashes in one file, and the caller's address where no keys are used.

A key reads `gk_<caller>_<secret>`, the secret 32 random bytes in hex, so that one SHA-256 is enough to keep it by. Invariants: the
file never holds a secret; a key file that cannot be read lets nobody in; comparisons take the same time wherever they fail.

Not checked: whether two callers are one person. Without keys a caller is an address (of IPv6 the /64 network), which anybody who
has many of them can change; `X-Forwarded-For` is not believed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import tempfile
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import msgspec

from garrison.errors import AuthenticationError, ConfigError

logger = logging.getLogger(__name__)

FORMAT = "garrison-keys/1"
SECRET_BYTES = 32
MOST_FILE_BYTES = 64 * 1024**2
_CALLER = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_PREFIX = "gk_"
_SCHEME = "Bearer "
ADDRESS = "ip:"
"""What the id of a caller without a key begins with."""
_NOBODY = hashlib.sha256(b"").hexdigest()
_MOST_CACHED = 4096
_MOST_HEADER_CHARACTERS = 256
_HELP = "send 'Authorization: Bearer gk_...', as `garrison keys add` printed it"


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a key: SHA-256 of its secret in hex, when it was made (UTC)."""

    sha256: str
    created: str


class KeyRing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a key file: keys by caller."""

    format: str = FORMAT
    keys: dict[str, KeyEntry] = {}


def read_keys(path: Path) -> KeyRing:
    """The keys in a file.

    Raises:
        ConfigError: the file is not there or not a key file.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise ConfigError(f"{path} is not a key file: expected a regular file")
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
        if len(data) > MOST_FILE_BYTES:
            raise ConfigError(f"{path} is not a key file: expected at most {MOST_FILE_BYTES:,} bytes")
        ring = msgspec.json.decode(data, type=KeyRing)
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read: {error.strerror}; `garrison keys add` makes one"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a key file: {error}") from error
    if ring.format != FORMAT:
        raise ConfigError(f"{path}: expected format {FORMAT!r}, found {ring.format!r}")
    return ring


def add_key(path: Path, caller: str) -> str:
    """Make a key for a caller and keep its hash; the file is made where there is none.

    Returns:
        The key. It is kept nowhere else.

    Raises:
        ConfigError: the caller has a key, or the name cannot be used.
    """
    if not _CALLER.fullmatch(caller):
        raise ConfigError(
            f"a caller's name is 1 to 64 of a-z, 0-9, '.' and '-', beginning with a letter or digit; found {caller!r}"
        )
    ring = read_keys(path) if path.exists() else KeyRing()
    if caller in ring.keys:
        raise ConfigError(f"{caller!r} has a key in {path}; revoke it first")
    secret = secrets.token_hex(SECRET_BYTES)
    entry = KeyEntry(_digest(secret), datetime.now(UTC).isoformat(timespec="seconds"))
    _write(path, KeyRing(keys={**ring.keys, caller: entry}))
    return f"{_PREFIX}{caller}_{secret}"


def revoke_key(path: Path, caller: str) -> None:
    """Forget a caller's key. A running server notices within seconds.

    Raises:
        ConfigError: the caller has no key.
    """
    ring = read_keys(path)
    if caller not in ring.keys:
        raise ConfigError(f"{caller!r} has no key in {path}; it holds {', '.join(sorted(ring.keys)) or 'none'}")
    _write(path, KeyRing(keys={name: entry for name, entry in ring.keys.items() if name != caller}))


class Authenticator:
    """Tells callers apart.

    Args:
        path: the key file, or None where callers are told apart by address.

    Raises:
        ConfigError: the key file cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._ring = KeyRing() if path is None else read_keys(path)
        self._stamp = _stamp(path)
        self._known: dict[str, str] = {}

    @property
    def uses_keys(self) -> bool:
        return self._path is not None

    def caller(self, header: str | None, peer: str) -> str:
        """The caller's id.

        Args:
            header: value of `Authorization`.
            peer: "address:port".

        Raises:
            AuthenticationError: keys are used and this is none.
        """
        if self._path is None:
            return _address(peer.rpartition(":")[0])
        if header is None:
            raise AuthenticationError(f"a key is needed: {_HELP}")
        # Only headers that were found good are remembered. A dict compares a string only after its keyed hash fits.
        known = self._known.get(header)
        return known if known is not None else self._check(header)

    def refresh(self) -> None:
        """Read the key file again if it has changed; called now and then while serving."""
        stamp = _stamp(self._path)
        if self._path is None or stamp == self._stamp:
            return
        self._stamp = stamp
        self._known.clear()
        try:
            self._ring = read_keys(self._path)
            logger.info("the key file has changed; it holds %d keys", len(self._ring.keys))
        except ConfigError:
            self._ring = KeyRing()
            logger.exception("the key file cannot be read; until it can, no key is good")

    def _check(self, header: str) -> str:
        if len(header) <= _MOST_HEADER_CHARACTERS and header.startswith(_SCHEME + _PREFIX) and header.isascii():
            caller, _, secret = header[len(_SCHEME + _PREFIX) :].strip().rpartition("_")
            entry = self._ring.keys.get(caller)
            good = hmac.compare_digest(_digest(secret), _NOBODY if entry is None else entry.sha256)
            if good and entry is not None:
                if len(self._known) >= _MOST_CACHED:
                    self._known.clear()
                self._known[header] = caller
                return caller
        raise AuthenticationError(f"the key is not known: {_HELP}")


@lru_cache(maxsize=_MOST_CACHED)
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


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _write(path: Path, ring: KeyRing) -> None:
    """Replace the file in one step, readable for its owner only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(ring), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise ConfigError(f"the key file {path} cannot be written: {error.strerror}") from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
