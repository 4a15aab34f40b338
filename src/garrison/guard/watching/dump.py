"""What `watch` remembers, as bytes and back.

A dump holds, as far as `MOST_BYTES` reach, in this order: counters, evidence and alarms of all callers (of those who are alarmed and of the latest, where they alone
take more than half); what detectors keep of all callers together; what they keep of each caller, and the digests of what it was answered: of callers who are alarmed
first, then of those against whom there is something, then of the latest. Callers of whom the last is missing begin that part anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from garrison.errors import StateError
from garrison.guard.state import MOST_STATE_BYTES
from garrison.guard.watching.book import Book
from garrison.guard.watching.digests import SECRET_BYTES
from garrison.guard.watching.evidence import Evidence
from garrison.guard.watching.groups import Groups
from garrison.guard.watching.memory import Rings
from garrison.guard.watching.places import PlaceArray, Places, Table
from garrison.limits import MIB
from garrison.types import Array, BoolArray

VERSION = 4
MOST_BYTES = MOST_STATE_BYTES - 3 * MIB
"""The rest is for the other defenses of the chain."""
_MOST_NAME = 1024
_NOTABLE = 0.25
"""There is something against a caller who has this share of a threshold."""


class Kept(Protocol):
    """What is dumped: see `garrison.guard.watching.state.WatchState`."""

    secret: bytes
    width: int
    places: Places
    alone: Evidence
    groups: Groups
    rings: Rings
    book: Book
    tables: list[Table]
    shared: list[dict[str, Array]]

    def open(self, width: int) -> None: ...

    def grow(self) -> None: ...

    def use(self, secret: bytes) -> None: ...


class Dump(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The form of a dump.

    Attributes:
        callers: names and places, who asked longest ago first.
        label, linked: of the groups, one entry a caller.
        near: of each caller, by table and column.
        shared: by detector, what it keeps of all callers together.
        rich: places of the callers whose entries stand in `far`.
        far: of these, by table and column.
    """

    version: int
    secret: bytes
    width: int
    callers: list[tuple[str, int]]
    label: bytes
    linked: bytes
    near: list[list[bytes]]
    shared: list[dict[str, bytes]]
    rich: list[int]
    far: list[list[bytes]]


_DECODER = msgspec.msgpack.Decoder(Dump)


def write(kept: Kept) -> bytes:
    """All that fits."""
    callers = _that_fit(kept, list(kept.places))
    places = np.array([place for _, place in callers], dtype=np.intp)
    near = [table.read(places) for table in _near(kept)]
    shared = [{name: x.tobytes() for name, x in arrays.items()} for arrays in kept.shared]
    used = _size(near) + sum(len(raw) for arrays in shared for raw in arrays.values())
    used += sum(len(caller.encode()) + 2 * _PLACE_BYTES for caller, _ in callers)
    rich = _by_merit(kept, places)[: max(0, MOST_BYTES - used) // max(1, _bytes_a_place(_far(kept)))]
    return msgspec.msgpack.encode(
        Dump(
            VERSION,
            kept.secret,
            kept.width,
            callers,
            kept.groups.label[places].astype(np.int64).tobytes(),
            kept.groups.linked[places].tobytes(),
            near,
            shared,
            rich.tolist(),
            [table.read(rich) for table in _far(kept)],
        )
    )


def read(data: bytes, fresh: Kept, most: int) -> None:
    """Put a dump into a state that is empty.

    Args:
        most: callers that it may hold.

    Raises:
        StateError: these bytes are no dump of such a state.
    """
    try:
        found = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError("what was kept of callers is not in the form that watch writes") from error
    if found.version != VERSION:
        raise StateError(f"what was kept of callers has version {found.version}, and watch reads {VERSION}")
    _check_callers(found, most)
    try:
        _restore(found, fresh)
    except (ValueError, OverflowError) as error:
        raise StateError(f"what was kept of callers does not fit the detectors of this chain: {error}") from error


_PLACE_BYTES = 16


def _restore(found: Dump, fresh: Kept) -> None:
    fresh.use(found.secret)
    fresh.places.restore(found.callers)
    if found.width >= 0:
        fresh.open(found.width)
    fresh.grow()
    places = np.array([place for _, place in found.callers], dtype=np.intp)
    near, far = _near(fresh), _far(fresh)
    if len(found.near) != len(near) or len(found.far) != len(far) or len(found.shared) != len(fresh.shared):
        raise ValueError("another number of tables")
    for table, columns in zip(near, found.near, strict=True):
        table.write(places, columns)
    for table, columns in zip(far, found.far, strict=True):
        table.write(np.array(found.rich, dtype=np.intp), columns)
    for arrays, kept in zip(fresh.shared, found.shared, strict=True):
        _write_shared(arrays, kept)
    label = np.frombuffer(found.label, np.int64)
    label = np.where(np.isin(label, places), label, places)  # of a group whose first member was not dumped
    fresh.groups.label[places] = label
    fresh.groups.linked[places] = np.frombuffer(found.linked)
    if not np.array_equal(fresh.groups.label[label], label):
        raise ValueError("a group whose label belongs to another")
    for evidence in (fresh.alone, fresh.groups.evidence):
        if not all(np.isfinite(evidence.table[name]).all() for name in ("sum", "alarm")):
            raise ValueError("sums that are not finite")
    fresh.alone.look()
    fresh.groups.look()
    fresh.rings.look()


def _check_callers(found: Dump, most: int) -> None:
    names, places = {name for name, _ in found.callers}, {place for _, place in found.callers}
    if len(names) != len(found.callers) or len(places) != len(found.callers) or len(names) > most:
        raise StateError(f"what was kept holds {len(found.callers)} callers; expected at most {most}, each once")
    if any(not 0 <= place < most for place in places) or any(len(name) > _MOST_NAME for name in names):
        raise StateError("what was kept holds a caller's name or place that cannot be")
    if len(found.secret) != SECRET_BYTES or not -1 <= found.width <= _MOST_NAME or not set(found.rich) <= places:
        raise StateError("what was kept of callers contradicts itself")


def _near(kept: Kept) -> Sequence[Table]:
    return (kept.book.table, kept.alone.table, kept.groups.evidence.table)


def _far(kept: Kept) -> Sequence[Table]:
    return (kept.rings.table, *kept.tables)


def _bytes_a_place(tables: Sequence[Table]) -> int:
    return sum(table.bytes_a_place for table in tables)


def _size(tables: Sequence[Sequence[bytes]]) -> int:
    return sum(len(raw) for columns in tables for raw in columns)


def _that_fit(kept: Kept, callers: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Callers whose counters take at most half of a dump: those who are alarmed, and of the others the latest."""
    each = _bytes_a_place(_near(kept)) + 2 * _PLACE_BYTES
    room, chosen = MOST_BYTES // 2, set[int]()
    alarmed = _alarmed(kept, np.array([place for _, place in callers], dtype=np.intp)).tolist()
    for number in sorted(range(len(callers)), key=lambda i: (not alarmed[i], -i)):
        room -= each + len(callers[number][0].encode())
        if room < 0:
            break
        chosen.add(number)
    return [caller for number, caller in enumerate(callers) if number in chosen]


def _alarmed(kept: Kept, places: PlaceArray) -> BoolArray:
    """Whether an alarm has rung for each of these, or for the group that it belongs to."""
    if not len(places):
        return np.zeros(0, dtype=np.bool_)
    joint = kept.groups.evidence.table["alarm"][kept.groups.label[places]]  # of whoever stands alone there is none
    found: BoolArray = np.any((kept.alone.table["alarm"][places] > 0) | (joint > 0), axis=1)
    return found


def _by_merit(kept: Kept, places: PlaceArray) -> PlaceArray:
    """Places, whose entries matter most first."""
    if not len(places):
        return places
    notable = (kept.alone.table["sum"][places] >= _NOTABLE * kept.alone.thresholds).any(axis=1)
    order: PlaceArray = places[np.lexsort((-np.arange(len(places)), ~notable, ~_alarmed(kept, places)))]
    return order


def _write_shared(arrays: Mapping[str, Array], kept: Mapping[str, bytes]) -> None:
    if arrays.keys() != kept.keys():
        raise ValueError("other arrays than the detector shares")
    for name, x in arrays.items():
        x[...] = np.frombuffer(kept[name], x.dtype).reshape(x.shape)
