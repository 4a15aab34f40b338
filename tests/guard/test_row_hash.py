"""A row's digest is of its numbers alone, the same in any batch, and made of long rows by another hash, which is no less random."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from garrison.crypto.keyed_hash import KeyedHash
from garrison.guard.row_hash import LONG, RowHash, canonical
from garrison.types import Array

KEY = bytes(range(32))
SIZES = [48, LONG - 8, LONG, 4 * 150_528]
PERSON = b"test"


def rows_of(size: int, count: int = 3) -> Array:
    return np.random.default_rng(size).random((count, size // 4), dtype=np.float32)


def alone(x: Array, row: int = 0, key: bytes = KEY) -> bytes:
    return RowHash(key, 16, PERSON).one({"x": x}, ["x"], row)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_bytes_are_canonical_wherever_an_odd_value_stands(kind: type[np.floating], place: int) -> None:
    plain = np.array([0.0, -1.5, 2.0, 0.5, 0.0, 7.0, -3.0], kind)
    assert canonical(plain) == plain.tobytes()
    zero, negative = plain.copy(), plain.copy()
    zero[place], negative[place] = 0.0, -0.0
    assert negative.tobytes() != zero.tobytes()
    assert canonical(negative) == canonical(zero) == zero.tobytes()
    bits = np.dtype(f"u{plain.itemsize}")
    unknown = []
    for sign in (1.0, -1.0):
        for payload in (0, 1):
            x = plain.copy()
            x[place] = np.copysign(kind(np.nan), kind(sign))
            x.view(bits)[place] |= payload
            unknown.append(x)
    assert len({x.tobytes() for x in unknown}) == 4
    assert len({canonical(x) for x in unknown}) == 1
    infinite = plain.copy()
    infinite[place] = -np.inf
    assert canonical(infinite) == infinite.tobytes()


def test_whole_numbers_are_their_bytes() -> None:
    x = np.array([0, -128, 127], np.int8)
    assert canonical(x) == x.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("about", [b"", b"caller"])
def test_short_rows_are_hashed_by_blake2b_and_long_ones_by_parts(size: int, about: bytes) -> None:
    x = rows_of(size)
    small = np.arange(6, dtype=np.int64).reshape(3, 2)
    found = RowHash(KEY, 16, PERSON).one({"x": x, "small": small}, ["small", "x"], 1, about)
    short = hashlib.blake2b(about + small[1].tobytes() + x[1].tobytes(), key=KEY, digest_size=16, person=PERSON)
    long = KeyedHash(KEY, 16).digest([about, small[1].tobytes(), x[1].tobytes()])
    assert short.digest() != long
    assert found == (long if size >= LONG else short.digest())


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused_before_there_is_a_row(size: int) -> None:
    """Short rows can do with any, and long ones cannot."""
    assert hashlib.blake2b(key=bytes(size), digest_size=16).digest(), "control"
    with pytest.raises(ValueError, match="32 bytes"):
        RowHash(bytes(size), 16)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("odd", [0.5, -0.0, np.nan])
def test_a_row_has_the_digest_that_it_has_among_many(size: int, odd: float) -> None:
    keyed, names = RowHash(KEY, 16), ["a", "b"]
    inputs = {"b": rows_of(size, 5).reshape(5, 2, -1), "a": np.arange(20, dtype=np.int16).reshape(5, 4)}
    inputs["b"][3, 1, 1] = odd
    one_by_one = [keyed.one(inputs, names, row) for row in range(5)]
    assert len(set(one_by_one)) == 5
    assert keyed.many(inputs, names, slice(None)) == one_by_one
    assert keyed.many(inputs, names, slice(1, 3)) == one_by_one[1:3]
    assert keyed.many(inputs, names, np.array([4, 0])) == [one_by_one[4], one_by_one[0]]
    assert keyed.many({name: x[:0] for name, x in inputs.items()}, names, slice(None)) == []
    apart = {name: np.asfortranarray(x)[::-1] for name, x in inputs.items()}  # the same numbers elsewhere in memory
    assert [keyed.one(apart, names, 4 - row) for row in range(5)] == one_by_one


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize("place", [0, 5, -1])
def test_equal_numbers_in_other_bits_are_one_row(size: int, kind: str, place: int) -> None:
    values = int(kind[1])
    x = np.zeros((4, size // values), kind)
    bits = x.view(f"u{values}")
    sign = 1 << (8 * values - 1)
    bits[1, place] = sign
    x[2:, place] = np.nan
    bits[3, place] |= sign | 1
    assert len({row.tobytes() for row in x}) == 4, "control"
    zero, negative, unknown, other = [alone(x, row) for row in range(4)]
    assert zero == negative
    assert unknown == other != zero
    x[1, place] = np.finfo(kind).smallest_subnormal
    assert alone(x, 1) != zero


@pytest.mark.parametrize("size", SIZES)
def test_key_order_and_what_is_beside_the_row_count(size: int) -> None:
    x, keyed = rows_of(size), RowHash(KEY, 16, PERSON)
    inputs = {"a": x[:1], "b": x[1:2]}
    found = {
        keyed.one(inputs, ["a", "b"], 0),
        keyed.one(inputs, ["b", "a"], 0),
        keyed.one(inputs, ["a", "b"], 0, b"\1"),
        keyed.one(inputs, ["a"], 0),
        RowHash(bytes(32), 16, PERSON).one(inputs, ["a", "b"], 0),
    }
    assert len(found) == 5


@pytest.mark.parametrize("size", SIZES)
def test_what_a_change_does_to_the_digest_says_nothing_of_other_rows(size: int) -> None:
    """A polynomial alone would answer the same change with the same difference, whatever the row."""
    x = np.random.default_rng(1).integers(0, 2**31, (40, size // 4), dtype=np.int32)
    changed = x ^ np.eye(1, size // 4, 5, dtype=np.int32)

    def difference(a: bytes, b: bytes) -> int:
        return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")

    found = [difference(alone(x, row), alone(changed, row)) for row in range(40)]
    assert len(set(found)) == 40
    flipped = sum(one.bit_count() for one in found)
    assert abs(flipped - 40 * 64) < 6 * np.sqrt(40 * 32)  # half of 128 bits each; six standard deviations
