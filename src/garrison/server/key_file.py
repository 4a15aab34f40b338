"""The file of API keys: hashes of their secrets, what each key may do and how much, and when it ends.

A key reads `gk_<caller>_<secret>`, the secret 32 random bytes in hex, so that one SHA-256 is enough to keep it by. Invariants: the file never holds a
secret; it is replaced in one step, and two programs that change it do so one after the other; what is not understood in it is an error.

    {"format": "garrison-keys/1", "keys": {"alice": {
        "secrets": [{"sha256": "9f86...", "created": "2026-11-21T20:30:00Z", "ends": "2027-11-21T20:30:00Z"}],
        "scopes": ["infer:mnist", "metadata:mnist"], "rows_per_day": 5000, "requests_per_second": 10.0}}}
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from garrison.config import check_quota
from garrison.errors import ConfigError
from garrison.server.identity import EVERYTHING, read_scopes

FORMAT = "garrison-keys/1"
PREFIX = "gk_"
SECRET_BYTES = 32
MOST_FILE_BYTES = 64 * 1024**2
MOST_SECRETS = 4
"""Of one caller: the newest, and those that a rotation left some time to."""
_CALLER = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_SHA256 = r"^[0-9a-f]{64}$"

Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is kept of a secret: its SHA-256 in hex, when it was made and when it ends; None for never."""

    sha256: Annotated[str, msgspec.Meta(pattern=_SHA256)]
    created: Time
    ends: Time | None = None

    @property
    def lives(self) -> timedelta | None:
        """How long it was made for; None for ever."""
        return None if self.ends is None else self.ends - self.created

    def is_over(self, now: datetime) -> bool:
        return self.ends is not None and self.ends <= now


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One caller.

    Attributes:
        secrets: oldest first; each is good until it ends.
        scopes: see `garrison.server.identity`.
        rows_per_day, requests_per_second: as in `[callers.NAME]`, and instead of it; 0 for what stands there.
    """

    secrets: Annotated[tuple[Secret, ...], msgspec.Meta(min_length=1, max_length=MOST_SECRETS)]
    scopes: tuple[str, ...] = (EVERYTHING,)
    rows_per_day: int = 0
    requests_per_second: float = 0.0

    def __post_init__(self) -> None:
        check_quota(self.rows_per_day, self.requests_per_second)
        try:
            read_scopes(self.scopes)
        except ConfigError as error:
            raise ValueError(str(error)) from error


class KeyRing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a key file: keys by caller."""

    format: str = FORMAT
    keys: dict[str, KeyEntry] = {}


class _Format(msgspec.Struct):
    format: str = ""


def read_keys(path: Path) -> KeyRing:
    """The keys in a file.

    Raises:
        ConfigError: the file is not there or not a key file.
    """
    try:
        _check_kind(path)
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read: {error.strerror}; `garrison keys add` makes one"
        ) from error
    if len(data) > MOST_FILE_BYTES:
        raise ConfigError(f"{path} is not a key file: expected at most {MOST_FILE_BYTES:,} bytes")
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise ConfigError(f"{path}: expected format {FORMAT!r}, found {found[:64]!r}")
        return msgspec.json.decode(data, type=KeyRing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a key file: {error}") from error


def add_key(
    path: Path,
    caller: str,
    *,
    scopes: Sequence[str] = (EVERYTHING,),
    lives: timedelta | None = None,
    rows_per_day: int = 0,
    requests_per_second: float = 0.0,
) -> str:
    """Make a key for a caller and keep its hash; the file is made where there is none.

    Args:
        scopes: what it may do; see `garrison.server.identity`.
        lives: how long it is good; None for ever.
        rows_per_day, requests_per_second: see `KeyEntry`.

    Returns:
        The key. It is kept nowhere else.

    Raises:
        ConfigError: the caller has a key, or the name, a scope or a number cannot be used.
    """
    if not _CALLER.fullmatch(caller):
        raise ConfigError(
            f"a caller's name is 1 to 64 of a-z, 0-9, '.' and '-', beginning with a letter or digit; found {caller!r}"
        )
    if not scopes:
        raise ConfigError("a key without a scope is good for nothing; '*' allows everything")
    with _alone(path):
        ring = read_keys(path) if path.exists() else KeyRing()
        if caller in ring.keys:
            raise ConfigError(f"{caller!r} has a key in {path}; rotate it, or revoke it first")
        text, secret = _fresh(caller, lives)
        try:
            entry = KeyEntry((secret,), tuple(scopes), rows_per_day, requests_per_second)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _write(path, KeyRing(keys={**ring.keys, caller: entry}))
    return text


FOR_EVER = timedelta.max


def rotate_key(path: Path, caller: str, *, overlap: timedelta, lives: timedelta | None = None) -> str:
    """Make a new key for a caller who has one; scopes and quotas stay.

    Args:
        overlap: how much longer the older ones are good; none where they end earlier.
        lives: how long the new one is good; None for as long as the one before it was made for, so that a key that had an end gets none by mistake that has not.

    Raises:
        ConfigError: the caller has no key, or too many that are still good.
    """
    if overlap < timedelta(0):
        raise ConfigError("the overlap of two keys cannot be negative")
    with _alone(path):
        ring = read_keys(path)
        entry = _entry(ring, caller, path)
        now = datetime.now(UTC).replace(microsecond=0)
        end = now + overlap
        older = tuple(
            msgspec.structs.replace(secret, ends=end if secret.ends is None else min(end, secret.ends))
            for secret in entry.secrets
            if overlap and not secret.is_over(now)
        )
        if len(older) >= MOST_SECRETS:
            raise ConfigError(
                f"{caller!r} has {len(older)} keys that are still good; rotate with --overlap 0, or wait for one to end"
            )
        text, secret = _fresh(caller, entry.secrets[-1].lives if lives is None else lives)
        _write(path, KeyRing(keys={**ring.keys, caller: msgspec.structs.replace(entry, secrets=(*older, secret))}))
    return text


def revoke_key(path: Path, caller: str) -> None:
    """Forget a caller's keys. A running server notices within seconds.

    Raises:
        ConfigError: the caller has no key.
    """
    with _alone(path):
        ring = read_keys(path)
        _entry(ring, caller, path)
        _write(path, KeyRing(keys={name: entry for name, entry in ring.keys.items() if name != caller}))


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _entry(ring: KeyRing, caller: str, path: Path) -> KeyEntry:
    entry = ring.keys.get(caller)
    if entry is None:
        raise ConfigError(f"{caller!r} has no key in {path}; it holds {', '.join(sorted(ring.keys)) or 'none'}")
    return entry


def _fresh(caller: str, lives: timedelta | None) -> tuple[str, Secret]:
    if lives is not None and lives <= timedelta(0):
        raise ConfigError("a key must live for longer than no time")
    text = secrets.token_hex(SECRET_BYTES)
    now = datetime.now(UTC).replace(microsecond=0)
    return f"{PREFIX}{caller}_{text}", Secret(digest(text), now, None if lives in (None, FOR_EVER) else now + lives)


def _check_kind(path: Path) -> None:
    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise ConfigError(f"{path} is not a key file: expected a regular file")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other programs from changing the file at the same time."""
    _check_kind(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, ring: KeyRing) -> None:
    """Replace the file in one step, readable for its owner only."""
    try:
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
