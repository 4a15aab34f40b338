"""Parameters that lie outside, and are checked every time that they come in.

    outside = OutsideMemory()
    store = VerifiedStore(outside, Budget(64 * MIB))
    chunks = store.put(number, data)       # once, at start: the bytes were verified against the signed manifest
    store.load(chunks, target)             # at every use: copied in, then checked, then used

Invariants: what is checked is the private copy, never the bytes outside; a copy that does not hold is overwritten with zeros before the
error is raised; keys and tags never leave; every byte of parameters in memory is counted by `Budget`, which refuses before it would be exceeded.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from garrison.crypto.gmac import Gmac
from garrison.errors import ChangedFileError, ConfigError, SwappedFileError, TruncatedFileError
from garrison.runtime.segments import ALIGNMENT_BYTES

CHUNK_BYTES = 256 * 1024
"""Small enough that a chunk is still in the processor's cache when it is checked, large enough that the call costs nothing."""


class ParameterSource(Protocol):
    """Where chunks lie, outside. Nothing that it gives is trusted."""

    def reserve(self, size: int) -> None:
        """Make room for this many bytes; called once, first."""
        ...

    def write(self, offset: int, data: memoryview) -> None: ...

    def read(self, offset: int, target: memoryview) -> int:
        """Copy bytes into `target`; how many there were."""
        ...


class Tagger(Protocol):
    """What makes tags and checks them; a `Gmac`, but for measurements and control arms of tests."""

    def tag(self, number: int, data: memoryview) -> bytes: ...

    def holds(self, number: int, data: memoryview, tag: bytes) -> bool: ...


class OutsideMemory:
    """Ordinary memory of the machine, mapped apart from the enclave's heap: it stays readable and writable to whoever rules the machine.

    A mapping and no file: copying out of it takes two thirds of the time of reading a file in memory, and nobody can truncate it.
    """

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def reserve(self, size: int) -> None:
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without large pages: a tenth slower to copy from
                memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(memory)

    def write(self, offset: int, data: memoryview) -> None:
        self._memory[offset : offset + len(data)] = data

    def read(self, offset: int, target: memoryview) -> int:
        found = self._memory[offset : offset + len(target)]
        target[: len(found)] = found
        return len(found)


class Budget:
    """Counts the bytes of parameters in memory.

    Args:
        most: None for no bound.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.used = 0

    def take(self, size: int) -> None:
        """Count bytes, before they are allocated.

        Raises:
            ConfigError: there would be more than `most`.
        """
        if self.most is not None and self.used + size > self.most:
            raise ConfigError(f"{self.used + size:,} bytes of parameters in memory, where {self.most:,} are allowed")
        self.used += size

    def allocate(self, size: int) -> memoryview:
        """A zeroed buffer that begins at a multiple of `ALIGNMENT_BYTES`; counted for good.

        Raises:
            ConfigError: as `take`.
        """
        self.take(size)
        room = np.zeros(size + ALIGNMENT_BYTES, dtype=np.uint8)
        start = -room.ctypes.data % ALIGNMENT_BYTES
        return room.data[start : start + size]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of parameters outside.

    Attributes:
        number: over the whole store; two chunks never have the same.
        offset, length: where it lies, in bytes.
        tag: under the store's key; secret.
    """

    number: int
    offset: int
    length: int
    tag: bytes


class VerifiedStore:
    """Chunks outside, and the key to recognise them.

    Args:
        source: where they are put.
        tagger: None for a fresh `Gmac`.
    """

    def __init__(self, source: ParameterSource, tagger: Tagger | None = None) -> None:
        self._source = source
        self._tagger: Tagger = Gmac() if tagger is None else tagger
        self._chunks: list[Chunk] = []

    def reserve(self, size: int) -> None:
        """Make room outside for all that will be put there, in bytes."""
        self._source.reserve(size)

    def put(self, data: memoryview) -> tuple[Chunk, ...]:
        """Tag bytes and lay them outside, in chunks. The bytes must be known to be good: verified, or made from what was."""
        found = []
        for start in range(0, len(data), CHUNK_BYTES):
            part = data[start : start + CHUNK_BYTES]
            last = self._chunks[-1] if self._chunks else None
            offset = 0 if last is None else last.offset + last.length
            number = len(self._chunks)
            chunk = Chunk(number, offset, len(part), self._tagger.tag(number, part))
            self._source.write(offset, part)
            self._chunks.append(chunk)
            found.append(chunk)
        return tuple(found)

    def load(self, chunks: tuple[Chunk, ...], target: memoryview) -> None:
        """Copy chunks into a private buffer, one after the other, and check each copy.

        Raises:
            TruncatedFileError, SwappedFileError, ChangedFileError: the bytes outside are not those that were put there. The buffer then
                holds zeros.
        """
        at = 0
        for chunk in chunks:
            part = target[at : at + chunk.length]
            try:
                found = self._source.read(chunk.offset, part)
                if found != chunk.length or not self._tagger.holds(chunk.number, part, chunk.tag):
                    raise self._explained(chunk, found, part)
            except BaseException:
                target[:] = bytes(len(target))
                raise
            at += chunk.length

    def _explained(
        self, chunk: Chunk, found: int, part: memoryview
    ) -> TruncatedFileError | SwappedFileError | ChangedFileError:
        name = f"parameters in memory, chunk {chunk.number}"
        if found < chunk.length:
            return TruncatedFileError(f"expected {chunk.length} bytes, found {found}", file=name)
        for other in self._chunks:
            if other.length == chunk.length and self._tagger.holds(other.number, part, other.tag):
                return SwappedFileError(f"holds the content of chunk {other.number}", file=name)
        return ChangedFileError("its bytes were changed after they had been verified", file=name)
