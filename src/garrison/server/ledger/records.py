"""The ledger's file format: what a line says, and how lines hang together. Pure functions over bytes.

A chain is a sequence of lines in segment files, oldest first. A line is one JSON object, with `kind`, `seq` and `time` first and `hash` last:

    {"kind":"answers","seq":17,"time":1763757000.123,"model":"mlp","version":1,"entries":[{...},{...}],"hash":"5f1c..."}

    body     the line without its `hash`, closed by "}"
    hash     SHA-256 over the hash of the line before (32 bytes; `GENESIS` before the first) and the body's SHA-256, in hex
    seq      number of the line's first entry; a line of `answers` has as many as `entries`, any other has one

So a line cannot be changed, taken out, put in or moved without changing every hash after it; and `checkpoint` lines hold the enclave's signature over the hash of an earlier
line. Who has the digests of the bodies in between can check that one hash follows from another, without a line (`garrison.protocol.checkpoint.follows`).
Invariant: no tensor values, and nothing of a sealed request but its size in rows and digests of what was sealed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from garrison.attest.evidence import Evidence
from garrison.enclave.host import Alarm
from garrison.errors import LedgerError
from garrison.protocol.checkpoint import SignedCheckpoint, next_head

FORMAT = 2
OK = "ok"
GENESIS = hashlib.sha256(b"garrison ledger v2\0").digest()
MOST_LINE_BYTES = 64 * 1024 * 1024
_HASH = b',"hash":"'
_END = b'"}'
_HEX = frozenset(b"0123456789abcdef")
_NO_ENTRIES = b"[]}"
_TAIL_BYTES = len(_HASH) + 64 + len(_END)


class _Line(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A line. `time` is in seconds since the epoch, UTC, by the server's clock."""

    seq: int
    time: float

    @property
    def entries_count(self) -> int:
        return 1


class Begin(_Line, frozen=True, tag="begin", gc=False):
    """The first line of a chain. `ledger`: its id, 16 random bytes in hex."""

    ledger: str
    format: int


class Segment(_Line, frozen=True, tag="segment", gc=False):
    """The first line of each further file. `before`: the hash of the line before it, so that a file stands alone."""

    ledger: str
    format: int
    before: str


class ServedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model at the server's start: digests are SHA-256 in hex, `guard` that of the chain that runs."""

    name: str
    version: int
    manifest: str
    guard: str
    isolation: str


class Start(_Line, frozen=True, tag="start", gc=False):
    """A server has started.

    Attributes:
        software: its version.
        models: what it serves.
        tightened: by defense, what the host tightens of the signed guard.
        callers: who has a release policy of their own, and which.
        cut: bytes of an unfinished line that a crash had left at the end, and that were cut off.
        beside: ids of the other chains that stood in the ledger's folder.
    """

    software: str
    models: tuple[ServedModel, ...]
    tightened: dict[str, dict[str, Any]] = {}
    callers: dict[str, dict[str, Any]] = {}
    cut: int = 0
    beside: tuple[str, ...] = ()


class Stop(_Line, frozen=True, tag="stop", gc=False):
    """The server has stopped, in good order."""


class Enclave(_Line, frozen=True, tag="enclave", gc=False):
    """An enclave that answers, and signs checkpoints, from here on: at the start, after it died, and at the head of each file.

    Attributes:
        key: the public key that it signs with, in hex.
        manifest, guard: digests.
        evidence: vouches for the key; its nonce is `evidence_nonce` of this ledger and this key. None where the isolation gives none.
    """

    model: str
    version: int
    key: str
    manifest: str
    guard: str
    isolation: str
    evidence: Evidence | None = None


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One request and its answer.

    Attributes:
        caller: as the server authenticated it.
        rows: rows that were charged; 0 where the request was not admitted.
        code: "ok", the true code of a refusal, or "sealed", of which nobody outside the enclave knows more.
        request, answer: SHA-256 in hex of both bodies; for a sealed request, of what was sealed; `answer` is empty where there is none.
        nonce: the client's, as in the answer's proof.
        replaced: rows whose answer a defense changed.
        distinct: of `rows`, those that the caller had not asked before; counted where different rows are limited.
        shadow: by defense in shadow, rows that it would have changed or refused.
        receipt: of a sealed request, in hex: what its client finds the entry by, and what nobody else can read.
    """

    caller: str
    rows: int
    code: str = OK
    request: str = ""
    answer: str = ""
    nonce: str = ""
    replaced: int = 0
    distinct: int = 0
    shadow: dict[str, int] = {}
    receipt: str = ""


class Answers(_Line, frozen=True, tag="answers", gc=False):
    """The requests of one batch, in their order."""

    model: str
    version: int
    entries: tuple[Entry, ...]

    @property
    def entries_count(self) -> int:
        return len(self.entries)


class Checkpoint(_Line, frozen=True, tag="checkpoint", gc=False):
    """An enclave has signed the chain up to an earlier line."""

    signed: SignedCheckpoint


class AlarmRang(_Line, frozen=True, tag="alarm", gc=False):
    """A detector of the guard named a caller, or an alarm of it is over (`alarm.active`)."""

    model: str
    version: int
    alarm: Alarm


class Act(_Line, frozen=True, tag="act", gc=False):
    """Something that an operator did, such as "alarms.clear"; written before it is done.

    Attributes:
        user: number of the operating system's user; -1 for the server itself.
        details: of what; never a secret.
    """

    act: str
    user: int = -1
    details: dict[str, str] = {}


class Outage(_Line, frozen=True, tag="outage", gc=False):
    """The ledger could not be written for a while. Meanwhile no answer left.

    Attributes:
        since: seconds since the epoch.
        held: requests that were answered or refused then, and told to come again instead.
        error: of the disk.
    """

    since: float
    held: int
    error: str


Record = Begin | Segment | Start | Stop | Enclave | Answers | Checkpoint | AlarmRang | Act | Outage
_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def write_entries(entries: Sequence[Entry]) -> bytes:
    """Entries as they stand in a line, for `Chain.add_answers`."""
    return _ENCODER.encode(entries)


class Chain:
    """The end of a chain: where the next line goes.

    Attributes:
        seq: number of the next entry.
        head: hash of the last line.
    """

    __slots__ = ("head", "seq")

    def __init__(self, seq: int = 0, head: bytes = GENESIS) -> None:
        self.seq = seq
        self.head = head

    def copy(self) -> Chain:
        return Chain(self.seq, self.head)

    def add(self, record: Record) -> bytes:
        """The line for a record whose `seq` is this chain's; the chain goes on after it."""
        return self._close(_ENCODER.encode(record)[:-1], record.entries_count)

    def add_answers(self, time: float, model: str, version: int, entries: bytes, count: int) -> bytes:
        """As `add`, for answers whose entries are written already."""
        start = _ENCODER.encode(Answers(self.seq, time, model, version, ())).removesuffix(_NO_ENTRIES)
        return self._close(start + entries, count)

    def _close(self, said: bytes, entries: int) -> bytes:
        """The line of a body, given without its last bracket."""
        body = hashlib.sha256(said)
        body.update(b"}")
        self.head = next_head(self.head, body.digest())
        self.seq += entries
        return b"".join((said, _HASH, self.head.hex().encode(), _END, b"\n"))

    def follow(self, line: bytes) -> bytes:
        """Go on after a line that was read, without its line feed. Its body.

        Raises:
            LedgerError: it is no line, or does not follow.
        """
        body, said = split(line)
        found = next_head(self.head, hashlib.sha256(body).digest())
        if found != said:
            raise LedgerError(f"its hash does not follow from the line before it: expected {found.hex()}")
        self.head = found
        return body


def split(line: bytes) -> tuple[bytes, bytes]:
    """Body and hash of a line.

    Raises:
        LedgerError: it has no hash at its end.
    """
    at = len(line) - _TAIL_BYTES
    if at <= 0 or line[at : at + len(_HASH)] != _HASH or not line.endswith(_END):
        raise LedgerError("it is no line of a ledger: there is no hash at its end")
    text = line[at + len(_HASH) : -len(_END)]
    if not set(text) <= _HEX:
        raise LedgerError("its hash is none")
    return line[:at] + b"}", bytes.fromhex(text.decode())


def read_body(body: bytes) -> Record:
    """What a line's body says.

    Raises:
        LedgerError: it is not a line of this format.
    """
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerError(f"it cannot be read: {error}") from error


def evidence_nonce(ledger: str, key: str) -> bytes:
    """The nonce of evidence that is kept in a ledger: it belongs to this ledger and this key, and to nothing else."""
    return hashlib.sha256(f"garrison ledger evidence v1\0{ledger}\0{key}".encode()).digest()
