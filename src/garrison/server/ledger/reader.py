"""Reads chains, apart from who writes them: a server may run meanwhile. Nothing is verified here (see `garrison.server.ledger.verify`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from garrison.errors import LedgerError
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.server.ledger.folder import LATEST, PRUNED, SEGMENT, chains_of, reading, segments_of
from garrison.server.ledger.records import (
    MOST_LINE_BYTES,
    Answers,
    Begin,
    Enclave,
    Entry,
    Record,
    Segment,
    read_body,
    split,
)

_MOST_STUB_BYTES = 64 * 1024 * 1024
_PART_BYTES = 1024 * 1024
_ZERO = b"\0"
Read = TypeVar("Read", bound=msgspec.Struct)


class Stub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left of a pruned segment.

    Attributes:
        ledger: the chain's id.
        first, last: numbers of the entries that were in it.
        before, head: hash of the line before its first one, and of its last one, in hex: the next segment begins with `head`, and the checkpoints of that cover it.
        since, until: times of its first and last line.
        entries: answers that were in it.
        pruned: when, in seconds since the epoch.
        enclaves: those that were named in it: what signs later may be one of them.
    """

    ledger: str
    first: int
    last: int
    before: str
    head: str
    since: float
    until: float
    entries: int
    pruned: float
    enclaves: tuple[Enclave, ...] = ()


class Line(NamedTuple):
    """A line and where it stands: numbers from 1."""

    path: Path
    number: int
    text: bytes


class Row(NamedTuple):
    """One answer, with what its line says of all."""

    chain: str
    seq: int
    time: float
    model: str
    version: int
    entry: Entry


def lines_of(path: Path) -> Iterator[Line]:
    """The whole lines of a segment, without their line feeds: those before the first zero, which stands in none, or before what has no line feed. What
    comes after them is being written, was cut off by a crash, or is room for more.

    The file may be written to, and cut, meanwhile: nothing is mapped, as a cut would end this process.

    Raises:
        LedgerError: the file cannot be read, or a line is too long.
    """
    for number, text in enumerate(lines_from(path), 1):
        yield Line(path, number, text)


def lines_from(path: Path, offset: int = 0) -> Iterator[bytes]:
    """As `lines_of`, from some byte on.

    Raises:
        LedgerError: the file cannot be read, or a line is too long.
    """
    with reading(path) as descriptor:
        rest = b""
        while part := os.pread(descriptor, _PART_BYTES, offset):
            offset += len(part)
            *lines, rest = (rest + part).split(b"\n")
            _check_length(path, max(map(len, (*lines, rest))))
            for line in lines:
                if _ZERO in line:
                    return
                yield line
            if _ZERO in rest:
                return


def _check_length(path: Path, length: int) -> None:
    if length > MOST_LINE_BYTES:
        raise LedgerError(f"{path} has a line of more than {MOST_LINE_BYTES:,} bytes, which no server writes")


def rest_of(path: Path, start: int) -> bytes:
    """What stands in a segment after its whole lines, which end at `start`, but for the room that is left there.

    Raises:
        LedgerError: the file cannot be read.
    """
    with reading(path) as descriptor:
        return os.pread(descriptor, MOST_LINE_BYTES, start).rstrip(_ZERO)


def records_of(chain: Path) -> Iterator[Record]:
    """All records of a chain that are still there.

    Raises:
        LedgerError: a line cannot be read.
    """
    for _, path in segments_of(chain):
        if path.suffix == SEGMENT:
            for line in lines_of(path):
                try:
                    yield read_body(split(line.text)[0])
                except LedgerError as error:
                    raise LedgerError(f"{path}, line {line.number}: {error}") from error


def answers_of(ledger: Path) -> Iterator[Row]:
    """All answers of all chains, chain by chain.

    Raises:
        ConfigError: there is no ledger.
        LedgerError: a line cannot be read.
    """
    for chain in chains_of(ledger):
        for record in records_of(chain):
            if isinstance(record, Answers):
                for k, entry in enumerate(record.entries):
                    yield Row(chain.name, record.seq + k, record.time, record.model, record.version, entry)


def read_stub(path: Path) -> Stub:
    """What is left of a pruned segment.

    Raises:
        LedgerError: it cannot be read.
    """
    return _read(path, Stub)


def latest_checkpoint(chain: Path) -> SignedCheckpoint | None:
    """The latest checkpoint that the writer put beside the chain; None for none.

    Raises:
        LedgerError: it cannot be read.
    """
    path = chain / LATEST
    return _read(path, SignedCheckpoint) if path.exists() or path.is_symlink() else None


def chain_ids(ledger: Path) -> dict[str, str]:
    """By name, the ids of the chains in a ledger's folder; those that hold no line yet are left out.

    Raises:
        LedgerError: a first line cannot be read.
    """
    found = {}
    for chain in chains_of(ledger):
        for _, path in segments_of(chain)[:1]:
            line = None if is_stub(path) else next(lines_from(path), None)
            first = read_stub(path) if line is None and is_stub(path) else None
            record = first if line is None else read_body(split(line)[0])
            if isinstance(record, Stub | Begin | Segment):
                found[chain.name] = record.ledger
    return found


def is_stub(path: Path) -> bool:
    return path.suffix == PRUNED


def _read(path: Path, kind: type[Read]) -> Read:
    with reading(path) as descriptor:
        found = os.read(descriptor, _MOST_STUB_BYTES)
    try:
        return msgspec.json.decode(found, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerError(f"{path} cannot be read: {error}") from error
