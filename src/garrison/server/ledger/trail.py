"""The way from what an enclave signed last to a chain's end: the digests of the lines in between, read back from the files.

An enclave signs a longer chain only where it is shown that it goes on from what it signed before (`garrison.enclave.witness`). Reading again costs a hash a line, once
a second and on the notary's thread, and nothing where lines are written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from garrison.errors import LedgerError
from garrison.limits import MIB
from garrison.protocol.checkpoint import BODY_BYTES, next_head
from garrison.server.ledger.folder import SEGMENT, segments_of
from garrison.server.ledger.reader import lines_from
from garrison.server.ledger.records import GENESIS, Begin, Segment, read_body, split

_REWOUND_BYTES = 16 * MIB
"""Beside the last file, so many bytes of those before it are looked through, or one file."""
MOST_LINES = 262_144
"""So many lines are told at once; where there are more, the oldest are left out."""


class Trail:
    """See the module's docstring. To be used from one thread.

    Args:
        chain: the folder.

    Raises:
        LedgerError: there is no line in it.
    """

    def __init__(self, chain: Path) -> None:
        self._chain = chain
        self._bodies = bytearray()
        self._path, self._offset = chain, 0
        self._start = self._end = GENESIS
        self.rewind()

    def to(self, head: bytes) -> tuple[bytes, bytes]:
        """The hash where the trail begins, and the digests of the bodies of all lines from there to `head`.

        Raises:
            LedgerError: no such line is on the disk.
        """
        if self._end != head:
            for body in self._read():
                self._bodies += body
                self._end = next_head(self._end, body)
                if self._end == head:
                    break
            else:
                raise LedgerError(f"{self._chain} has no line whose hash is {head.hex()}")
        more = len(self._bodies) - MOST_LINES * BODY_BYTES
        if more > 0:
            self._forget(more)
        return self._start, bytes(self._bodies)

    def signed(self) -> None:
        """What was told last is signed: the trail begins there now."""
        self._start = self._end
        self._bodies.clear()

    def rewind(self) -> None:
        """Begin early: some files before the last.

        Raises:
            LedgerError: there is none.
        """
        path, size = None, 0
        for file in reversed(self._live()):
            path, size = file, size + (0 if path is None else file.stat().st_size)
            if size >= _REWOUND_BYTES:
                break
        line = None if path is None else next(lines_from(path), None)
        if path is None or line is None:
            raise LedgerError(f"{self._chain} holds no line")
        first = read_body(split(line)[0])
        if not isinstance(first, Begin | Segment):
            raise LedgerError(f"{path} does not begin as a file of a ledger does")
        self._path, self._offset = path, 0
        self._start = self._end = GENESIS if isinstance(first, Begin) else bytes.fromhex(first.before)
        self._bodies.clear()

    def _read(self) -> Iterator[bytes]:
        while True:
            for line in lines_from(self._path, self._offset):
                self._offset += len(line) + 1
                yield hashlib.sha256(split(line)[0]).digest()
            later = [path for path in self._live() if path.name > self._path.name]
            if not later:
                return
            self._path, self._offset = later[0], 0

    def _live(self) -> list[Path]:
        return [path for _, path in segments_of(self._chain) if path.suffix == SEGMENT]

    def _forget(self, length: int) -> None:
        for at in range(0, length, BODY_BYTES):
            self._start = next_head(self._start, bytes(self._bodies[at : at + BODY_BYTES]))
        del self._bodies[:length]
