"""Where a chain ends, for who goes on with it after a stop or a crash.

A crash leaves whole lines, and perhaps parts of those that nobody has been told of yet: that is cut off. Room for them was made before, so where the power failed zeros
may stand in place of what is missing. Anything else that does not hold was no crash, and nothing is written after it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from garrison.errors import LedgerError
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.server.ledger.folder import SEGMENT, segments_of
from garrison.server.ledger.reader import latest_checkpoint, lines_of, rest_of
from garrison.server.ledger.records import FORMAT, Begin, Chain, Segment, read_body, split

_HELP = "`garrison ledger verify` says more; keep the folder, and name another"


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a chain.

    Attributes:
        ledger: its id.
        path: the last file.
        whole: how long that file is without what a crash left unfinished.
        unended: the last line is whole but for its line feed.
        cut: bytes after it.
        born: when the file was begun.
        latest: the latest checkpoint.
    """

    ledger: str
    path: Path
    chain: Chain
    whole: int
    unended: bool
    cut: int
    born: float
    latest: SignedCheckpoint | None


def recover(folder: Path) -> Found | None:
    """Find the end of a chain; None where not even its first line was written.

    Raises:
        LedgerError: the last file was tampered with, or entries that were signed are missing.
    """
    found = segments_of(folder)
    live = [path for _, path in found if path.suffix == SEGMENT]
    while live and not _has_lines(live[-1]):
        if b"\n" in rest_of(live[-1], 0):  # a first line is written alone: it was there
            raise LedgerError(f"{live[-1]}: zeros stand in the first line; {_HELP}")
        if len(found) == 1:
            return None
        live.pop().unlink()  # begun, and never told of
    if not live:
        if found:
            raise LedgerError(f"{folder} has only what is left of pruned files: the last one is missing; {_HELP}")
        return None
    try:
        end = _end_of(live[-1], latest_checkpoint(folder))
    except LedgerError as error:
        raise LedgerError(f"{error}; {_HELP}") from error
    latest = end.latest
    if latest is not None and (latest.checkpoint.ledger != end.ledger or latest.checkpoint.at >= end.chain.seq):
        raise LedgerError(
            f"{folder} ends at entry {end.chain.seq - 1}, but entry {latest.checkpoint.at} was signed; {_HELP}"
        )
    return end


def _end_of(path: Path, latest: SignedCheckpoint | None) -> Found:
    chain, first, last, whole = Chain(), None, b"", 0
    for line in lines_of(path):
        try:
            if first is None:
                first = read_body(split(line.text)[0])
                chain = _start_of(first)
            last = chain.follow(line.text)
        except LedgerError as error:
            raise LedgerError(f"{path}, line {line.number}: {error}") from error
        whole += len(line.text) + 1
    if not isinstance(first, Begin | Segment) or first.format != FORMAT:
        raise LedgerError(f"{path}: expected a ledger of format {FORMAT}")
    tail = rest_of(path, whole)
    unended = False
    with suppress(LedgerError):
        last, unended = chain.follow(tail), True
    record = read_body(last)
    chain.seq = record.seq + record.entries_count
    kept = len(tail) if unended else 0
    return Found(first.ledger, path, chain, whole + kept, unended, len(tail) - kept, first.time, latest)


def _start_of(first: object) -> Chain:
    """The chain before a file's first line."""
    if isinstance(first, Begin):
        return Chain()
    if isinstance(first, Segment):
        return Chain(first.seq, bytes.fromhex(first.before))
    raise LedgerError("a file begins with a line that says which ledger it is of")


def _has_lines(path: Path) -> bool:
    return next(lines_of(path), None) is not None
