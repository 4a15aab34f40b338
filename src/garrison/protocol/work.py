"""Proof of work: a request pays for its rows with hashes (Back, "Hashcash", 2002). Pure functions over bytes.

    proof    "TIME.COUNTER", both in decimal: seconds since the epoch by the client's clock, and the number that was found
    digest   SHA-256(label | service's public key | TIME, 8 bytes | SHA-256(caller's id) | SHA-256(body) | COUNTER, 8 bytes)
    pays     for floor(2^64 / (value + 1) / 2^bits) rows, value the digest's first 8 bytes as a whole number, big endian

So a proof for n rows takes n x 2^bits hashes on average, and one hash to check. It belongs to one service, one caller, one body and one time;
whoever checks it remembers those that were used (`garrison.enclave.toll`).

Not claimed: that work keeps anybody from copying a model. It puts a price on volume, the same for a thief as for anybody else, and hardware made
for SHA-256 works thousands of times faster than the loop below.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import struct
import time
from collections.abc import Callable

MOST_BITS = 40
MOST_COUNTER = 2**63
MOST_HASHES = 2**56
_LABEL = b"garrison work v1\0"
_PROOF = re.compile(r"(\d{1,12})\.(\d{1,19})", re.ASCII)
_NUMBER = struct.Struct(">Q")
_VALUE_BYTES = 8
_SPACE = 2**64
_TURN = 65_536
"""So many hashes between two calls of `progress`."""

Progress = Callable[[int, float], None]
"""Told of the hashes that were made, and how many it takes on average."""


def read(proof: str) -> tuple[int, int] | None:
    """Time and counter of a proof; None for what is none."""
    found = _PROOF.fullmatch(proof)
    if found is None or int(found[2]) >= MOST_COUNTER:
        return None
    return int(found[1]), int(found[2])


def digest(public_key: bytes, caller: str, body: bytes, when: int, counter: int) -> bytes:
    """The digest of a proof, 32 bytes."""
    return _finish(_begin(public_key, caller, body, when), counter)


def rows_paid(found: bytes, bits: int) -> int:
    """How many rows a digest pays for, at 2^bits hashes a row."""
    return (_SPACE // (int.from_bytes(found[:_VALUE_BYTES], "big") + 1)) >> bits


def solve(
    public_key: bytes,
    caller: str,
    body: bytes,
    *,
    rows: int,
    bits: int,
    when: int,
    progress: Progress | None = None,
) -> str:
    """A proof that pays for the rows; takes rows x 2^bits hashes on average, and three times as many in one case of twenty.

    Args:
        public_key: of the service, 32 bytes.
        caller: id of the API key, "" without one.
        body: of the request, as it stands in the open.
        when: seconds since the epoch.

    Raises:
        ValueError: it would take more than `MOST_HASHES`.
    """
    expected = rows << bits
    if not 1 <= expected <= MOST_HASHES:
        raise ValueError(f"expected work of 1 to {MOST_HASHES} hashes, found {expected}")
    most = (_SPACE // expected - 1).to_bytes(_VALUE_BYTES, "big")
    begun = _begin(public_key, caller, body, when)
    first = counter = secrets.randbelow(MOST_COUNTER // 2)  # the same question a second time needs another proof
    while True:
        for number in range(counter, counter + _TURN):
            if _finish(begun, number)[:_VALUE_BYTES] <= most:
                return f"{when}.{number}"
        counter += _TURN
        if progress is not None:
            progress(counter - first, float(expected))


def hashes_a_second(seconds: float = 0.2) -> float:
    """How many hashes `solve` makes on this machine, on one core."""
    begun = _begin(bytes(32), "", b"", 0)
    made, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        for number in range(made, made + _TURN // 16):
            _finish(begun, number)
        made += _TURN // 16
    return made / taken


def work_in_words(bits: int) -> str:
    """What so many bits cost on this machine, measured now."""
    rate = hashes_a_second()
    return f"2^{bits} hashes a row, {1000 * 2**bits / rate:,.1f} s for 1,000 rows on one core of this machine ({rate / 1e6:.2f} million hashes a second)"


def _begin(public_key: bytes, caller: str, body: bytes, when: int) -> hashlib._Hash:
    who, what = hashlib.sha256(caller.encode()).digest(), hashlib.sha256(body).digest()
    return hashlib.sha256(b"".join((_LABEL, public_key, _NUMBER.pack(when), who, what)))


def _finish(begun: hashlib._Hash, counter: int) -> bytes:
    one = begun.copy()
    one.update(_NUMBER.pack(counter))
    return one.digest()
