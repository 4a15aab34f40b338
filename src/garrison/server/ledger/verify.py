"""Does a ledger hold? Reads every line, and says which is the first that does not.

    1  files         segments and stubs follow one another without a gap; nothing follows the last line but what a crash may leave
    2  lines         each line's hash follows from the line before it, and its number too; each is of this format
    3  order         answers stand between a start and a stop of a server
    4  checkpoints   each signature holds, over the hash that the chain has there, and what the same enclave signed before stands in the chain
    5  keys          each key that signed is vouched for: by evidence in the ledger that passes the caller's policy, or by the caller
    6  end           the chain reaches the latest checkpoint beside it, and those that the caller kept elsewhere
    7  chains        each chain that stood there when another was gone on with is there still, and none is left out in their numbers

NOT seen: entries after the last checkpoint that were cut off or replaced by who holds the disk (a proof in a client's hand, or a checkpoint kept elsewhere, shows it); what
the server never wrote down; another ledger that the server's own host had signed from its first line on. `ChainReport.late` names entries that stood there before the enclave
that signed them saw the ledger; `tardy`, those that it signed long after they say they were written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from garrison.errors import LedgerError, ProofError
from garrison.protocol.checkpoint import Checkpoint as Said
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.server.ledger.folder import chain_name, chains_of, segments_of
from garrison.server.ledger.reader import Stub, is_stub, latest_checkpoint, lines_of, read_stub, rest_of
from garrison.server.ledger.records import (
    FORMAT,
    Answers,
    Begin,
    Chain,
    Checkpoint,
    Enclave,
    Record,
    Segment,
    Start,
    Stop,
    read_body,
)
from garrison.server.ledger.trust import KeyTrust

TARDY_SECONDS = 300.0
_ONE_IS_ENOUGH = 2
"""A chain with one checkpoint may have been stopped before the file beside it was there."""


@dataclass(slots=True)
class ChainReport:
    """What was found of one chain.

    Attributes:
        problem: the first thing that does not hold, and where; "" where all does.
        first, last: numbers of the first and the last entry; -1 for none.
        answers: answers that are there.
        pruned: entries of which stubs are left.
        checkpoints: signatures that hold.
        signed: number of the last entry that is signed; -1 for none.
        unsigned: entries from the first to the last answer after it, and how long ago that first one was written, in seconds.
        late: first and last number of answers that stood there when the enclave that signed them first saw the ledger.
        tardy: first and last number of answers that were signed more than `TARDY_SECONDS` after the time that their line tells.
        beside: ids of chains that stood there when a server went on with this one.
        crashes: numbers of the entries before which a server ended without a stop.
        unfinished: bytes of a line at the end that was not finished.
        keys: by key that signed, in hex, who vouches for it.
    """

    name: str
    ledger: str = ""
    problem: str = ""
    first: int = -1
    last: int = -1
    answers: int = 0
    pruned: int = 0
    checkpoints: int = 0
    signed: int = -1
    unsigned: int = 0
    unsigned_seconds: float = 0.0
    late: list[tuple[int, int]] = field(default_factory=list)
    tardy: list[tuple[int, int]] = field(default_factory=list)
    beside: set[str] = field(default_factory=set)
    crashes: list[int] = field(default_factory=list)
    unfinished: int = 0
    keys: dict[str, str] = field(default_factory=dict)


def verify_ledger(
    path: Path, trust: KeyTrust, anchors: Sequence[SignedCheckpoint] = (), now: float | None = None
) -> list[ChainReport]:
    """Check all chains of a ledger, or the one that the folder is.

    Args:
        trust: whose keys count.
        anchors: checkpoints that were kept elsewhere.

    Raises:
        ConfigError: there is no ledger.
    """
    at = time.time() if now is None else now
    reports = [_Walk(chain, trust, anchors, at).report() for chain in chains_of(path)]
    missing = {anchor.checkpoint.ledger for anchor in anchors} - {report.ledger for report in reports}
    if missing:
        reports[0].problem = reports[0].problem or f"a checkpoint was given of chain {min(missing)}, which is not here"
    if reports[0].name != path.name:
        _check_chains(reports)
    return reports


def _check_chains(reports: Sequence[ChainReport]) -> None:
    """7 chains, where the folder is a whole ledger."""
    here = {report.ledger for report in reports}
    for number, report in enumerate(reports):
        gone = sorted(report.beside - here)
        if gone:
            report.problem = report.problem or f"chain {gone[0]} is missing: it stood beside this one"
        elif report.name != chain_name(number):
            report.problem = report.problem or f"{chain_name(number)} is missing"
            return


class _Walk:
    """One way through a chain."""

    def __init__(self, chain: Path, trust: KeyTrust, anchors: Sequence[SignedCheckpoint], now: float) -> None:
        self._path = chain
        self._trust = trust
        self._now = now
        self._found = ChainReport(chain.name)
        self._chain: Chain | None = None
        self._ends: dict[int, bytes] = {}
        self._heads: dict[int, str] = {}
        self._wanted = {anchor.checkpoint.at for anchor in anchors}
        self._anchors = anchors
        self._pruned_to = -1
        self._running: bool | None = False
        self._unsigned: list[tuple[int, int, float]] = []  # answers: first and last number, and time
        self._vouched: dict[str, str] = {}
        self._not_vouched: dict[str, str] = {}

    def report(self) -> ChainReport:
        found = self._found
        try:
            self._walk()
            self._check_keys()
            self._check_end()
        except LedgerError as error:
            found.problem = str(error)
        if self._chain is not None:
            found.last = self._chain.seq - 1
            if self._unsigned:
                found.unsigned = self._unsigned[-1][1] - self._unsigned[0][0] + 1
                found.unsigned_seconds = max(0.0, self._now - min(then for _, _, then in self._unsigned))
        return found

    def _walk(self) -> None:
        # 1 files
        parts = segments_of(self._path)
        both = {first for first, path in parts if not is_stub(path)}
        parts = [(first, path) for first, path in parts if not (is_stub(path) and first in both)]
        for k, (first, path) in enumerate(parts):
            if self._chain is not None and first != self._chain.seq:
                raise LedgerError(f"entries {self._chain.seq} to {first - 1} are missing: no file holds them")
            if is_stub(path):
                if any(not is_stub(before) for _, before in parts[:k]):
                    raise LedgerError(
                        f"{path.name}: pruned after an older file that is still there; `prune` drops the oldest first"
                    )
                self._skip(read_stub(path), path)
            else:
                self._read(first, path, last=k == len(parts) - 1)
        if not parts or is_stub(parts[-1][1]):
            raise LedgerError("the last file is missing")

    def _skip(self, stub: Stub, path: Path) -> None:
        found = self._found
        before = self._chain or Chain()
        follows = stub.before == before.head.hex() and stub.first == before.seq
        if not follows or (found.ledger and stub.ledger != found.ledger) or stub.last < stub.first:
            raise LedgerError(f"{path.name}: what is left of a pruned file does not follow from what is before it")
        found.ledger = stub.ledger
        found.first = stub.first if found.first < 0 else found.first
        found.pruned += stub.last - stub.first + 1
        self._chain = Chain(stub.last + 1, _hash_of(stub.head))
        self._ends = {stub.last: self._chain.head}
        self._heads[stub.last] = stub.head
        for enclave in stub.enclaves:
            self._meet(enclave)
        self._running = None  # what was started in it is not known any more
        self._pruned_to = found.signed = stub.last  # signed by what comes, see `_check_end`

    def _read(self, first: int, path: Path, *, last: bool) -> None:
        size = 0
        for line in lines_of(path):
            size += len(line.text) + 1
            where = f"{path.name}, line {line.number}"
            # 2 lines
            chain = self._begin(first, line.text, where) if line.number == 1 else self._chain
            if chain is None:
                raise LedgerError(f"{where}: nothing comes before it")
            self._chain = chain
            start = chain.seq
            try:
                record = read_body(chain.follow(line.text))
            except LedgerError as error:
                raise LedgerError(
                    f"entry {start} ({where}) was changed, or stands in the wrong place: {error}"
                ) from error
            if record.seq != start:
                raise LedgerError(f"{where}: expected entry {start}, found {record.seq}")
            chain.seq += record.entries_count
            self._take(record, chain, where)
        rest = len(rest_of(path, size))
        if rest and not last:
            raise LedgerError(f"{path.name}: {rest} bytes follow the last line")
        self._found.unfinished = rest
        if size == 0 and not last:
            raise LedgerError(f"{path.name} is empty")

    def _begin(self, first: int, text: bytes, where: str) -> Chain:
        """The chain before a file's first line."""
        record = _peek(text, where)
        found, before = self._found, self._chain
        if not isinstance(record, Begin | Segment) or record.format != FORMAT:
            raise LedgerError(f"{where}: a file begins with a line that says which ledger it is of, in format {FORMAT}")
        if found.ledger and record.ledger != found.ledger:
            raise LedgerError(f"{where}: it belongs to another chain, {record.ledger}")
        found.ledger = record.ledger
        if isinstance(record, Begin):
            if before is not None or first != 0:
                raise LedgerError(f"{where}: a chain begins in the middle of another")
            found.first = 0
            return Chain()
        if before is None:
            raise LedgerError(
                f"entries 0 to {first - 1} are missing: {where} does not begin a chain, and no stub is left"
            )
        if record.before != before.head.hex():
            raise LedgerError(f"entry {before.seq - 1} or {where} was changed: the hashes between the files differ")
        return before

    def _take(self, record: Record, chain: Chain, where: str) -> None:
        found, end = self._found, chain.seq - 1
        self._ends[end] = chain.head
        if end in self._wanted:
            self._heads[end] = chain.head.hex()
        # 3 order
        match record:
            case Start():
                if self._running:
                    found.crashes.append(record.seq)
                self._running = True
                found.beside.update(record.beside)
            case Stop():
                self._running = False
            case Answers():
                if self._running is False:
                    raise LedgerError(f"entry {record.seq} ({where}) was added: no server had started")
                found.answers += record.entries_count
                self._unsigned.append((record.seq, end, record.time))
            case Enclave():
                self._meet(record)
            case Checkpoint():
                self._check(record, where)
            case _:
                pass

    def _meet(self, record: Enclave) -> None:
        """5 keys, as far as one line says it."""
        if record.key not in self._vouched:
            good, who = self._trust.vouch(record, self._found.ledger)
            (self._vouched if good else self._not_vouched)[record.key] = who

    def _check(self, record: Checkpoint, where: str) -> None:
        """4 checkpoints."""
        signed, found = record.signed, self._found
        said, key = signed.checkpoint, signed.key.hex()
        range_ = f"entries {found.signed + 1} to {record.seq - 1}"
        try:
            signed.verify()
        except ProofError as error:
            raise LedgerError(f"{range_} may have been changed: the signature at {where} does not hold") from error
        if said.ledger == found.ledger and said.at < self._pruned_to:
            return  # what it is over is not there any more
        end = self._ends.get(said.at)
        if said.ledger != found.ledger or end is None or said.at >= record.seq or end.hex() != said.head:
            raise LedgerError(f"{range_} were changed after they were signed: the checkpoint at {where} is of others")
        self._check_before(said, where)
        self._cover(said)
        found.checkpoints += 1
        found.signed = said.at
        found.keys.setdefault(key, "")
        self._heads[said.at] = said.head
        self._ends = {at: head for at, head in self._ends.items() if at >= said.at}

    def _check_before(self, said: Said, where: str) -> None:
        """4 checkpoints: what else the enclave says of the ledger."""
        before = said.before
        if not said.since <= said.at or (before is not None and not said.since <= before.at < said.at):
            raise LedgerError(f"the checkpoint at {where} contradicts itself")
        if before is None or before.at < self._pruned_to:
            return
        end = self._ends.get(before.at)
        known = self._heads.get(before.at) if end is None else end.hex()
        if known not in {
            None,
            before.head,
        }:  # not known: another enclave signed in between; this one checked it when it signed
            raise LedgerError(
                f"entries up to {before.at} were changed after they were signed: the enclave that signed at {where} had signed others before"
            )

    def _cover(self, said: Said) -> None:
        """Note which answers a checkpoint is the first to cover."""
        found = self._found
        covered = [line for line in self._unsigned if line[1] <= said.at]
        self._unsigned = self._unsigned[len(covered) :]
        _note(found.late, [line for line in covered if line[1] <= said.since])
        _note(found.tardy, [line for line in covered if said.time - line[2] > TARDY_SECONDS])

    def _check_keys(self) -> None:
        """5 keys."""
        found = self._found
        for key in found.keys:
            who = self._trust.known(key) or self._vouched.get(key, "")
            if not who:
                why = self._not_vouched.get(key, "no line names an enclave with it")
                raise LedgerError(f"checkpoints are signed by the key {key}, which nothing vouches for: {why}")
            found.keys[key] = who

    def _check_end(self) -> None:
        """6 end."""
        found, chain = self._found, self._chain
        if chain is None:
            raise LedgerError("it holds no line")
        if not found.checkpoints and (found.answers or found.pruned):
            raise LedgerError("nothing in it is signed")
        latest = latest_checkpoint(self._path)
        if latest is None and found.checkpoints >= _ONE_IS_ENOUGH:
            raise LedgerError(
                "the latest checkpoint beside the chain is missing, so an end that was cut off could not be seen"
            )
        kept = [anchor for anchor in self._anchors if anchor.checkpoint.ledger == found.ledger]
        for anchor in kept if latest is None else [latest, *kept]:
            self._check_anchor(anchor, chain)

    def _check_anchor(self, anchor: SignedCheckpoint, chain: Chain) -> None:
        said = anchor.checkpoint
        try:
            anchor.verify()
        except ProofError as error:
            raise LedgerError(
                f"the checkpoint of entry {said.at} that is kept beside the chain has no good signature"
            ) from error
        if said.ledger != self._found.ledger:
            raise LedgerError(f"the checkpoint beside the chain is of another one, {said.ledger}")
        if said.at >= chain.seq:
            raise LedgerError(f"entries {chain.seq} to {said.at} are missing: they were signed, and are cut off")
        if said.at < self._pruned_to and said.at not in self._heads:
            raise LedgerError(
                f"the checkpoint of entry {said.at} says nothing any more: entries up to {self._pruned_to} were pruned; "
                "expected a later one"
            )
        if self._heads.get(said.at) != said.head:
            raise LedgerError(f"entries up to {said.at} were changed: the checkpoint that is kept of them is of others")


def _note(ranges: list[tuple[int, int]], lines: Sequence[tuple[int, int, float]]) -> None:
    if lines:
        ranges.append((lines[0][0], lines[-1][1]))


def _hash_of(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise LedgerError(f"expected a hash, found {text[:70]!r}") from error


def _peek(text: bytes, where: str) -> Record:
    try:
        return read_body(text[: text.rindex(b',"hash":"')] + b"}")
    except (LedgerError, ValueError) as error:
        raise LedgerError(f"{where}: {error}") from error
