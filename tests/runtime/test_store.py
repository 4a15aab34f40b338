"""Whatever is changed outside is found when it comes in, and nothing of it stays in memory."""

from __future__ import annotations

import os

import numpy as np
import pytest

from garrison.crypto.gmac import Gmac
from garrison.errors import BundleError, ChangedFileError, ConfigError, SwappedFileError, TruncatedFileError
from garrison.runtime.segments import ALIGNMENT_BYTES
from garrison.runtime.store import CHUNK_BYTES, Budget, Chunk, OutsideMemory, ParameterSource, VerifiedStore

SIZE = 2 * CHUNK_BYTES + 1000


class Outside:
    """Memory that a test may change."""

    def __init__(self) -> None:
        self.data = bytearray()

    def reserve(self, size: int) -> None:
        self.data = bytearray(size)

    def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def read(self, offset: int, target: memoryview) -> int:
        found = self.data[offset : offset + len(target)]
        target[: len(found)] = found
        return len(found)


class Unchecked:
    """The control arm: no check at all."""

    def tag(self, number: int, data: memoryview) -> bytes:
        return b""

    def holds(self, number: int, data: memoryview, tag: bytes) -> bool:
        return True


def filled(outside: ParameterSource, size: int = SIZE) -> tuple[VerifiedStore, tuple[Chunk, ...], bytes]:
    data = os.urandom(size)
    store = VerifiedStore(outside)
    store.reserve(size)
    return store, store.put(memoryview(data)), data


@pytest.mark.parametrize("make", [Outside, OutsideMemory])
def test_what_is_put_comes_back(make: type[Outside | OutsideMemory]) -> None:
    store, chunks, data = filled(make())
    assert [chunk.length for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, 1000]
    target = bytearray(SIZE)
    store.load(chunks, memoryview(target))
    assert target == data


def test_a_flipped_bit_anywhere_is_found_and_nothing_stays() -> None:
    outside = Outside()
    store, chunks, data = filled(outside, 5000)
    rng = np.random.default_rng(0)
    target = bytearray(5000)
    for place, bit in zip(rng.integers(0, 5000, 500), rng.integers(0, 8, 500), strict=True):
        outside.data[place] ^= 1 << int(bit)
        target[:] = b"\xff" * 5000
        with pytest.raises(ChangedFileError, match="chunk 0"):
            store.load(chunks, memoryview(target))
        assert target == bytes(5000)
        outside.data[place] ^= 1 << int(bit)
    store.load(chunks, memoryview(target))
    assert target == data


def test_swapped_chunks_are_told_from_changed_ones() -> None:
    outside = Outside()
    store, chunks, data = filled(outside)
    outside.data[:CHUNK_BYTES], outside.data[CHUNK_BYTES : 2 * CHUNK_BYTES] = (
        data[CHUNK_BYTES : 2 * CHUNK_BYTES],
        data[:CHUNK_BYTES],
    )
    with pytest.raises(SwappedFileError, match="chunk 0: holds the content of chunk 1"):
        store.load(chunks, memoryview(bytearray(SIZE)))


def test_a_truncated_store_is_told() -> None:
    outside = Outside()
    store, chunks, _ = filled(outside)
    del outside.data[-1:]
    with pytest.raises(TruncatedFileError, match="expected 1000 bytes, found 999"):
        store.load(chunks, memoryview(bytearray(SIZE)))


def test_an_older_version_is_refused() -> None:
    """What another start of the service, or an older model, had laid outside does not hold under this start's key."""
    older, newer = Outside(), Outside()
    filled(older)
    store, chunks, _ = filled(newer)
    newer.data[:] = older.data
    with pytest.raises(ChangedFileError):
        store.load(chunks, memoryview(bytearray(SIZE)))


def test_only_the_private_copy_is_checked_and_used() -> None:
    """Changed right after the copy: the copy is what was checked, so it holds, and the change is found the next time."""

    class Racing(Outside):
        def read(self, offset: int, target: memoryview) -> int:
            found = super().read(offset, target)
            self.data[offset] ^= 1
            return found

    outside = Racing()
    store, chunks, data = filled(outside)
    target = bytearray(SIZE)
    store.load(chunks, memoryview(target))
    assert target == data
    with pytest.raises(ChangedFileError):
        store.load(chunks, memoryview(target))


def test_control_without_the_check_a_change_comes_through() -> None:
    outside = Outside()
    store = VerifiedStore(outside, Unchecked())
    store.reserve(100)
    chunks = store.put(memoryview(bytes(100)))
    outside.data[5] = 1
    target = bytearray(100)
    store.load(chunks, memoryview(target))
    assert target[5] == 1


def test_tags_are_bound_to_their_chunk() -> None:
    """Chunks of the same content have different tags, so that the tag of one says nothing of the other."""
    store = VerifiedStore(Outside())
    store.reserve(3 * CHUNK_BYTES)
    chunks = store.put(memoryview(bytes(3 * CHUNK_BYTES)))
    assert len({chunk.tag for chunk in chunks}) == 3
    other = Chunk(chunks[0].number, chunks[0].offset, chunks[0].length, chunks[1].tag)
    store.load(chunks[:1], memoryview(bytearray(CHUNK_BYTES)))
    with pytest.raises(BundleError):
        store.load((other,), memoryview(bytearray(CHUNK_BYTES)))


def test_the_budget_refuses_before_it_is_exceeded() -> None:
    budget = Budget(1000)
    buffer = budget.allocate(900)
    assert np.frombuffer(buffer, np.uint8).ctypes.data % ALIGNMENT_BYTES == 0
    assert (len(buffer), budget.used) == (900, 900)
    with pytest.raises(ConfigError, match="1,001 bytes"):
        budget.allocate(101)
    assert budget.used == 900
    Budget().take(10**12)


@pytest.mark.slow
def test_of_ten_thousand_random_flips_none_is_missed() -> None:
    outside = Outside()
    size = 3 * CHUNK_BYTES
    store, chunks, data = filled(outside, size)
    rng = np.random.default_rng(1)
    target = bytearray(size)
    missed = 0
    for place, bit in zip(rng.integers(0, size, 10_000), rng.integers(0, 8, 10_000), strict=True):
        outside.data[place] ^= 1 << int(bit)
        try:
            store.load(chunks, memoryview(target))
            missed += 1
        except BundleError:
            pass
        outside.data[place] ^= 1 << int(bit)
    assert missed == 0
    store.load(chunks, memoryview(target))
    assert target == data


def test_the_default_is_a_fresh_key() -> None:
    data = bytes(64)
    assert Gmac().tag(0, data) != Gmac().tag(0, data)
