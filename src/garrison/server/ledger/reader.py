"""Reads chains, apart from who writes them: a server may run meanwhile. Nothing is verified here (see `garrison.server.ledger.verify`)."""

from __future__ import annotations

import mmap
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
    """The whole lines of a segment, without their line feeds. What comes after the last line feed is being written, or was cut off by a crash.

    Raises:
        LedgerError: the file cannot be read, or a line is too long.
    """
    with reading(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as data:
            start = number = 0
            while (end := data.find(b"\n", start)) >= 0:
                number += 1
                _check_length(path, end - start)
                yield Line(path, number, data[start:end])
                start = end + 1


def _check_length(path: Path, length: int) -> None:
    if length > MOST_LINE_BYTES:
        raise LedgerError(f"{path} has a line of more than {MOST_LINE_BYTES:,} bytes, which no server writes")


def lines_from(path: Path, offset: int = 0) -> Iterator[bytes]:
    """As `lines_of`, from some byte on; for a file that may be written to, and cut, meanwhile: nothing is mapped, as a cut would end this process.

    Raises:
        LedgerError: the file cannot be read, or a line is too long.
    """
    with reading(path) as descriptor:
        rest = b""
        while part := os.pread(descriptor, _PART_BYTES, offset):
            offset += len(part)
            *lines, rest = (rest + part).split(b"\n")
            _check_length(path, len(rest))
            yield from lines


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
