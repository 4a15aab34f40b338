"""Runs a graph in segments: each one's parameters are loaded, checked, used and overwritten by the next one's.

    memory = Memory([pieces], Budget(64 * MIB), VerifiedStore(OutsideMemory()))
    (network,) = memory.networks([pieces], [outputs])

What fits into the budget stays in memory ("pinned"), the rest is loaded at every run ("streamed") into one buffer that all share. A
network is a scan, always in the same order, so that keeping what was used last would keep nothing useful; what is pinned is chosen once.

Invariants: parameters live only in buffers that the budget counts; nothing is computed with a chunk that was not checked in this very run,
or pinned after its check; one run at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from garrison.errors import ConfigError
from garrison.runtime.onnx_wire import Tensor
from garrison.runtime.segments import Pieces, Segment, aligned, laid_out, open_segment, view
from garrison.runtime.store import Budget, Chunk, VerifiedStore
from garrison.types import Array, FloatArray


@dataclass(frozen=True, slots=True)
class Choice:
    """What stays in memory.

    Attributes:
        pinned: numbers of the pieces that stay.
        stream_bytes: size of the buffer for all others.
    """

    pinned: frozenset[int]
    stream_bytes: int


def choose(sizes: Sequence[int], room: int | None) -> Choice:
    """Which pieces stay: those that save the most bytes of loading at every run.

    Loading costs the same for each byte (copy and check), whatever the byte belongs to. So the choice that saves the most time is the one
    that pins the most bytes, and pinning the largest pieces has a second use: the buffer for the others may be smaller.

    Args:
        sizes: bytes of each piece's parameters.
        room: bytes in all; None for no bound.

    Raises:
        ConfigError: not even the largest piece fits.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    if room is None or sum(sizes) <= room:
        return Choice(frozenset(order), 0)
    if room < max(sizes):
        raise ConfigError(f"expected room for the largest piece, {max(sizes):,} bytes, found {room:,}")
    best, saved = Choice(frozenset(), max(sizes)), 0
    for stream in sorted({size for size in sizes if size <= room}):
        pinned, used = _pinned(sizes, order, stream, room - stream)
        if used > saved:
            best, saved = Choice(pinned, stream), used
    return best


def _pinned(sizes: Sequence[int], order: Sequence[int], stream: int, room: int) -> tuple[frozenset[int], int]:
    """The largest first: those that the buffer cannot hold must be among them. -1 bytes where they do not fit."""
    pinned: set[int] = set()
    used = 0
    for i in order:
        if used + sizes[i] <= room:
            pinned.add(i)
            used += sizes[i]
        elif sizes[i] > stream:
            return frozenset(), -1
    return frozenset(pinned), used


@dataclass(frozen=True, slots=True)
class _Part:
    session: Any
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    parameters: Mapping[str, Any]
    chunks: tuple[Chunk, ...]
    """What is loaded before it runs; empty where all is pinned."""
    target: memoryview
    """Where to."""


class Memory:
    """The buffers and the store that all graphs of a model share.

    Args:
        graphs: cut, in order.
        budget: small parameters are counted, then the buffers.
        store: where parameters go.
        fixed: bytes of parameters that are in memory besides: those of graphs that are run whole.

    Attributes:
        choice: what is pinned, by the number of a piece over all graphs.

    Raises:
        ConfigError: the budget is too small; says what the least is.
    """

    def __init__(self, graphs: Sequence[Pieces], budget: Budget, store: VerifiedStore, fixed: int = 0) -> None:
        sizes = [size for pieces in graphs for size in pieces.sizes]
        kept = fixed + sum(pieces.kept_bytes for pieces in graphs)
        least = budget.used + kept + max(sizes)
        if budget.most is not None and budget.most < least:
            raise ConfigError(
                f"this model needs at least {least:,} bytes of parameters in memory at once, found a parameter memory of "
                f"{budget.most:,}"
            )
        budget.take(kept)
        self.choice = choose(sizes, None if budget.most is None else budget.most - budget.used)
        self._budget, self._store = budget, store
        self._stream = budget.allocate(self.choice.stream_bytes)
        store.reserve(sum(size for i, size in enumerate(sizes) if i not in self.choice.pinned))
        self._given = 0
        self._lock = threading.Lock()

    def networks(self, graphs: Sequence[Pieces], outputs: Sequence[Sequence[str]]) -> list[OnDemand]:
        """The graphs, ready to run. Their streamed parameters lie outside afterwards."""
        found = []
        for pieces, names in zip(graphs, outputs, strict=True):
            numbers = range(self._given, self._given + len(pieces.sizes))
            self._given += len(pieces.sizes)
            pinned = [i in self.choice.pinned for i in numbers]
            segments = pieces.joined(pinned, self.choice.stream_bytes)
            found.append(OnDemand([self._part(segment) for segment in segments], names, self._store, self._lock))
        return found

    def _part(self, segment: Segment) -> _Part:
        target = self._stream[: laid_out(segment.streamed)]
        values = _filled(self._budget.allocate(laid_out(segment.pinned)), segment.pinned)
        values |= _filled(target, segment.streamed)
        session = open_segment(segment.graph)
        return _Part(session, segment.takes, segment.gives, values, self._store.put(target), target)


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


class OnDemand:
    """A graph in segments. Made by `Memory.networks`.

    Args:
        parts: in the order in which they run.
        outputs: the answers.
        store: where streamed parameters are.
        lock: one run at a time, over all graphs that share a buffer.
    """

    def __init__(
        self, parts: Sequence[_Part], outputs: Sequence[str], store: VerifiedStore, lock: threading.Lock
    ) -> None:
        self.parts = tuple(parts)
        self._store, self._lock = store, lock
        wanted = [set(part.takes) for part in parts]
        later = [set(outputs).union(*wanted[i + 1 :]) for i in range(len(parts))]
        self._dropped = [names - kept for names, kept in zip(wanted, later, strict=True)]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[FloatArray]:
        """The answers.

        Raises:
            BundleError: a chunk was changed outside; nothing was computed with it.
        """
        values: dict[str, Any] = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()
        }
        with self._lock:
            for part, dropped in zip(self.parts, self._dropped, strict=True):
                if part.chunks:
                    self._store.load(part.chunks, part.target)
                feeds = {name: values[name] for name in part.takes}
                feeds.update(part.parameters)
                values.update(zip(part.gives, part.session.run_with_ort_values(part.gives, feeds), strict=True))
                for name in dropped:
                    del values[name]
        return [values[name].numpy() for name in outputs]
