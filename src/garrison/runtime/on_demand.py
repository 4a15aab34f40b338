"""Runs a graph in segments: each one's parameters are loaded, checked, used and overwritten by a later one's.

    memory = Memory([pieces], Budget(64 * MIB), VerifiedStore(OutsideMemory()))
    (network,) = memory.networks([pieces], [outputs])
    network.load_ahead()                         # from here on a second core loads while the first computes

What fits into the budget stays in memory ("pinned"), the rest is loaded at every run ("streamed") into one buffer that all share. A
network is a scan, always in the same order, so that keeping what was used last would keep nothing useful; what is pinned is chosen once.

Invariants: parameters live only in buffers that the budget counts; nothing is computed with a chunk that was not checked in this very run,
or pinned after its check; one run at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from garrison.errors import ConfigError
from garrison.runtime.loading import Load, Loader, cores
from garrison.runtime.onnx_wire import Tensor
from garrison.runtime.segments import FIRST_BYTES, Pieces, Segment, aligned, laid_out, open_segment, view
from garrison.runtime.store import Budget, VerifiedStore
from garrison.types import Array, FloatArray

STREAM_BYTES = 8 << 20
"""The buffer for loading gets so much, or this share of the room if that is less: larger segments mean fewer calls of the runtime. More of it where loading is hidden behind computing."""
_STREAM_SHARE = {True: 2 / 3, False: 1 / 3}
PLACES = 3
"""The buffer holds so many segments' parameters at once, where they are loaded ahead: with two, loading would wait for computing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What stays in memory.

    Attributes:
        pinned: numbers of the pieces that stay.
        stream_bytes: size of the buffer for all others.
        most: bytes that a segment may load: a part of that buffer, so that later segments' parameters come in beside; all of it where
            nothing is loaded ahead.
    """

    pinned: frozenset[int]
    stream_bytes: int
    most: int


def choose(sizes: Sequence[int], room: int | None, places: int = PLACES) -> Choice:
    """Which pieces stay: those that save the most bytes of loading at every run.

    Loading costs the same for each byte (copy and check), whatever the byte belongs to. So the choice that saves the most time is the one
    that pins the most bytes, and pinning the largest pieces has a second use: the buffer for the others may be smaller.

    Args:
        sizes: bytes of each piece's parameters.
        room: bytes in all; None for no bound.
        places: how many segments' parameters the buffer should hold at once; 1 where nothing is loaded ahead.

    Raises:
        ConfigError: not even the largest piece fits.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    if room is None or sum(sizes) <= room:
        return Choice(frozenset(order), 0, 0)
    if room < max(sizes):
        raise ConfigError(f"expected room for the largest piece, {max(sizes):,} bytes, found {room:,}")
    for count in range(places, 0, -1):
        best = _best(sizes, order, room, count)
        if best is not None:
            return best
    return Choice(frozenset(), max(sizes), max(sizes))


def _best(sizes: Sequence[int], order: Sequence[int], room: int, places: int) -> Choice | None:
    """The choice that pins the most bytes and leaves a buffer for so many segments; None where there is none."""
    best, saved = None, -1
    wanted = min(int(room * _STREAM_SHARE[places > 1]), STREAM_BYTES)
    for most in sorted({max(size, wanted // places) for size in sizes}):
        if most * places > room:
            break
        pinned, used = _pinned(sizes, order, most, room - most * places)
        if used > saved:
            best, saved = Choice(pinned, most * places, most), used
    return best


def _pinned(sizes: Sequence[int], order: Sequence[int], most: int, room: int) -> tuple[frozenset[int], int]:
    """The largest first: those that cannot be loaded must be among them. -1 bytes where they do not fit."""
    pinned: set[int] = set()
    used = 0
    for i in order:
        if used + sizes[i] <= room:
            pinned.add(i)
            used += sizes[i]
        elif sizes[i] > most:
            return frozenset(), -1
    return frozenset(pinned), used


def _places(sizes: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Where each segment's parameters go in the buffer, one behind the other and around, and how many segments must be done before."""
    at, placed = 0, list[tuple[int, int]]()
    for size in sizes:
        if at + size > room:
            at = 0
        after = 0
        for i, (start, end) in enumerate(placed):
            if start < at + size and at < end:
                after = i + 1
        placed.append((at, at + size))
        yield at, after
        at += size


@dataclass(frozen=True, slots=True)
class _Part:
    session: Any
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    parameters: Mapping[str, Any]
    load: Load


class Memory:
    """The buffers and the store that all graphs of a model share.

    Args:
        graphs: cut, in order.
        budget: small parameters are counted, then the buffers.
        store: where parameters go.
        fixed: bytes of parameters that are in memory besides: those of graphs that are run whole.
        pin: False for a buffer alone, and nothing that stays: for measurements.
        places: see `choose`; None for what this process's cores allow.

    Attributes:
        choice: what is pinned, by the number of a piece over all graphs.

    Raises:
        ConfigError: the budget is too small; says what the least is.
    """

    def __init__(
        self,
        graphs: Sequence[Pieces],
        budget: Budget,
        store: VerifiedStore,
        fixed: int = 0,
        *,
        pin: bool = True,
        places: int | None = None,
    ) -> None:
        sizes = [size for pieces in graphs for size in pieces.sizes]
        kept = fixed + sum(pieces.kept_bytes for pieces in graphs)
        least = budget.used + least_bytes(graphs, fixed)
        if budget.most is not None and budget.most < least:
            raise ConfigError(
                f"this model needs at least {least:,} bytes of parameters in memory at once, found a parameter memory of "
                f"{budget.most:,}"
            )
        budget.take(kept)
        room = None if budget.most is None else budget.most - budget.used
        if places is None:
            places = PLACES if cores() > 1 else 1
        if pin or room is None:
            self.choice = choose(sizes, room, places)
        else:
            self.choice = Choice(frozenset(), room, max(*sizes, room // places))
        self._budget, self._store = budget, store
        self._first = (
            FIRST_BYTES if places > 1 else self.choice.most
        )  # nothing is gained by a short one where all is done in turn
        self._stream = budget.allocate(self.choice.stream_bytes)
        store.reserve(sum(size for i, size in enumerate(sizes) if i not in self.choice.pinned))
        self._given = 0
        self._loader = Loader(store)

    def networks(self, graphs: Sequence[Pieces], outputs: Sequence[Sequence[str]]) -> list[OnDemand]:
        """The graphs, ready to run. Their streamed parameters lie outside afterwards."""
        found = []
        for pieces, names in zip(graphs, outputs, strict=True):
            numbers = range(self._given, self._given + len(pieces.sizes))
            self._given += len(pieces.sizes)
            pinned = [i in self.choice.pinned for i in numbers]
            segments = pieces.joined(pinned, self.choice.most, self._first)
            places = _places([laid_out(segment.streamed) for segment in segments], len(self._stream))
            parts = [self._part(segment, *place) for segment, place in zip(segments, places, strict=True)]
            found.append(OnDemand(parts, names, self._loader))
        return found

    def _part(self, segment: Segment, at: int, after: int) -> _Part:
        target = self._stream[at : at + laid_out(segment.streamed)]
        values = _filled(self._budget.allocate(laid_out(segment.pinned)), segment.pinned)
        values |= _filled(target, segment.streamed)
        session = open_segment(segment.graph)
        load = Load(self._store.put(target), target, after)
        return _Part(session, segment.takes, segment.gives, values, load)


def _filled(memory: memoryview, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Tensors laid into a buffer, and the runtime's handles on their places, which it neither copies nor writes."""
    found, at = {}, 0
    for tensor in tensors:
        data = memoryview(b"") if tensor.data is None else tensor.data
        place = memory[at : at + len(data)]
        place[:] = data
        found[tensor.name] = ort.OrtValue.ortvalue_from_numpy(view(place, tensor))
        at += aligned(len(data))
    return found


def least_bytes(graphs: Sequence[Pieces], fixed: int = 0) -> int:
    """The least parameter memory that graphs can be run in: a buffer for the largest piece, and what stays in any case."""
    return fixed + sum(pieces.kept_bytes for pieces in graphs) + max(size for pieces in graphs for size in pieces.sizes)


class OnDemand:
    """A graph in segments. Made by `Memory.networks`.

    Args:
        parts: in the order in which they run.
        outputs: the answers.
        loader: brings parameters in; shared by all graphs that share a buffer.
    """

    def __init__(self, parts: Sequence[_Part], outputs: Sequence[str], loader: Loader) -> None:
        self.parts = tuple(parts)
        self._loader = loader
        wanted = [set(part.takes) for part in parts]
        later = [set(outputs).union(*wanted[i + 1 :]) for i in range(len(parts))]
        self._dropped = [names - kept for names, kept in zip(wanted, later, strict=True)]

    def load_ahead(self) -> bool:
        """Start the thread that loads while another computes, where there is a second core; whether it runs. For all graphs at once."""
        return self._loader.start_thread()

    def stop_loading(self) -> None:
        """End that thread, for all graphs."""
        self._loader.stop_thread()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[FloatArray]:
        """The answers.

        Raises:
            BundleError: a chunk was changed outside; nothing was computed with it.
        """
        values: dict[str, Any] = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()
        }
        with self._loader.run([part.load for part in self.parts]) as turn:
            for number, (part, dropped) in enumerate(zip(self.parts, self._dropped, strict=True)):
                feeds = {name: values[name] for name in part.takes}
                feeds.update(part.parameters)
                turn.wait(number)
                values.update(zip(part.gives, part.session.run_with_ort_values(part.gives, feeds), strict=True))
                turn.done(number)
                for name in dropped:
                    del values[name]
        return [values[name].numpy() for name in outputs]
