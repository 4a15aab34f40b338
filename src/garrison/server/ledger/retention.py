"""Drops what is older than it may be kept: whole segments, of each of which a stub is left, so that the chain still verifies.

A stub says how many entries there were, of which times, and the chain's hash where they end. The next segment begins with that hash, and an enclave's checkpoint in what
is kept covers it; so a stub that lies is found. What nobody can see any more is what the entries said.

Invariants: a segment that does not hold is not dropped, it is evidence; the last one, to which the server writes, never is, nor one that no checkpoint in what is
kept covers; a stub is on the disk before its segment goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from garrison.errors import LedgerError
from garrison.server.ledger.folder import pruned_name, replace_file, segments_of, sync_folder
from garrison.server.ledger.reader import Stub, is_stub, lines_of
from garrison.server.ledger.records import (
    GENESIS,
    Answers,
    Begin,
    Chain,
    Checkpoint,
    Enclave,
    Segment,
    read_body,
    split,
)


def prune(chain: Path, before: float) -> Iterator[tuple[int, int]]:
    """Drop the segments whose last line is older than `before` (seconds since the epoch), oldest first. The numbers of the first and last entry of each.

    Raises:
        LedgerError: a segment does not hold. Those before it are dropped, it and those after it are not.
        OSError: the disk fails.
    """
    live = [path for _, path in segments_of(chain) if not is_stub(path)]
    for k, path in enumerate(live[:-1]):
        if _last_time(path) >= before:
            return
        stub = stub_of(path)
        if not _is_signed(stub.last, live[k + 1 :]):
            return
        replace_file(chain / pruned_name(stub.first), msgspec.json.encode(stub))
        path.unlink()
        sync_folder(chain)
        yield stub.first, stub.last


def stub_of(path: Path) -> Stub:
    """What is left of a segment when it is pruned.

    Raises:
        LedgerError: it does not hold.
    """
    chain, start, record = Chain(), None, None
    enclaves: dict[str, Enclave] = {}
    entries = 0
    for line in lines_of(path):
        try:
            if start is None:
                start = read_body(split(line.text)[0])
                if not isinstance(start, Begin | Segment):
                    raise LedgerError("a file begins with a line that says which ledger it is of")
                chain.head = bytes.fromhex(start.before) if isinstance(start, Segment) else GENESIS
            record = read_body(chain.follow(line.text))
        except LedgerError as error:
            raise LedgerError(f"{path}, line {line.number}: {error}; it is not dropped") from error
        if isinstance(record, Answers):
            entries += record.entries_count
        elif isinstance(record, Enclave):
            enclaves.setdefault(record.key, record)
    if not isinstance(start, Begin | Segment) or record is None:
        raise LedgerError(f"{path} holds no line; it is not dropped")
    return Stub(
        ledger=start.ledger,
        first=start.seq,
        last=record.seq + record.entries_count - 1,
        before=start.before if isinstance(start, Segment) else GENESIS.hex(),
        head=chain.head.hex(),
        since=start.time,
        until=record.time,
        entries=entries,
        pruned=round(time.time(), 6),
        enclaves=tuple(enclaves.values()),
    )


def _is_signed(last: int, kept: Sequence[Path]) -> bool:
    """Whether a checkpoint in these segments covers the entry. It is mostly near the head of the first."""
    for path in kept:
        for line in lines_of(path):
            record = read_body(split(line.text)[0])
            if isinstance(record, Checkpoint) and record.signed.checkpoint.at >= last:
                return True
    return False


def _last_time(path: Path) -> float:
    last = None
    for line in lines_of(path):
        last = line
    if last is None:
        raise LedgerError(f"{path} holds no line; it is not dropped")
    return read_body(split(last.text)[0]).time
