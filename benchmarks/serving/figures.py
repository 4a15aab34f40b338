"""From records to figures. Pure functions; every ratio is taken within a round, and the median over rounds is given with its quartiles."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.serving.records import Record

REFERENCE_US = {1: 22.2, 32: 11.5}
"""ONNX Runtime on the LeNet-size model, us an image, by batch, on the machine that the budgets were set for."""
GUARD_MUST_US = {1: 60.0, 32: 10.0}
FRAMEWORKS = ("mlserver", "litserve", "bentoml", "fastapi-json")
"""Garrison's figures are compared with the best of these, each as its users write it; Ray Serve is shown beside them."""
RAW = ("fastapi",)
"""A FastAPI route of our own that reads and writes raw octets: it skips what FastAPI parses, checks and documents. Compared with as well."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))


_RESAMPLES = 2_000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which values the median over very many rounds lies, in 95 of 100 runs: the percentile bootstrap (Efron 1979), with a fixed seed."""
    draw = random.Random(0)
    medians = [statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES)]
    ends = statistics.quantiles(medians, n=40, method="inclusive")
    return ends[0], ends[-1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the figures to reach.

    Attributes:
        what: in words.
        must: the bound, in `unit`; at most, or at least where `least`.
        found: None where it could not be measured.
        judged: the number that is held against the bound; the median of `found` where it is left out.
        note: what else is to be known.
    """

    what: str
    must: float
    unit: str
    found: Spread | None
    judged: float | None = None
    least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None where nothing was measured."""
        if self.found is None:
            return None
        value = self.found.median if self.judged is None else self.judged
        return value >= self.must if self.least else value <= self.must


Get = Callable[[Record], float]


def processor(record: Record) -> float:
    return record.processor_us


def rate(record: Record) -> float:
    return record.rate


def good(records: Sequence[Record], stage: str, model: str, connections: int, arm: str) -> dict[int, Record]:
    """By round, without the failed."""
    wanted = (stage, model, connections, arm)
    return {
        r.round: r
        for r in records
        if (r.stage, r.model, r.connections, r.arm) == wanted and not r.failure and r.requests
    }


def values(records: Sequence[Record], stage: str, model: str, connections: int, arm: str, get: Get) -> list[float]:
    return [get(r) for r in good(records, stage, model, connections, arm).values()]


def paired(
    records: Sequence[Record],
    place: tuple[str, str, int],
    arms: tuple[str, str],
    get: Get,
    combine: Callable[[float, float], float],
) -> list[float]:
    """`combine` of the two arms' values, in every round that has both."""
    first, second = (good(records, *place, arm) for arm in arms)
    return [combine(get(first[k]), get(second[k])) for k in sorted(first.keys() & second.keys())]


def ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def difference(a: float, b: float) -> float:
    return a - b


def runtime_us(records: Sequence[Record], batch: int) -> float | None:
    """The bare runtime, us an image of the LeNet-size model, in the same rounds."""
    found = values(records, "runtime", "lenet", batch, "runtime", processor)
    return statistics.median(found) if found else None


def guard_added(records: Sequence[Record], connections: int) -> Figure:
    """What the guard adds to a request, judged as on the machine that the budget was set for."""
    found = Spread.of(paired(records, ("guard", "lenet", connections), ("guarded", "unguarded"), processor, difference))
    runtime = runtime_us(records, connections)
    judged, note = None, "the bare runtime was not measured, so this is not scaled"
    if found is not None and runtime:
        judged = found.median * REFERENCE_US[connections] / runtime
        note = (
            f"**{judged:.1f} us** scaled: here the bare runtime takes {runtime:.1f} us an image at batch {connections}, "
            f"{REFERENCE_US[connections]} us where the bound was set"
        )
    what = f"processor time that the guard adds to a request, LeNet size, {plural(connections)}"
    return Figure(what, GUARD_MUST_US[connections], "us", found, judged, note=note)


def plural(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"


def best_peer(records: Sequence[Record], model: str, connections: int, peers: Sequence[str]) -> str | None:
    """That of `peers` which takes the least processor time a request."""
    found = {
        peer: statistics.median(spent)
        for peer in peers
        if (spent := values(records, "peers", model, connections, peer, processor))
    }
    return min(found, key=lambda peer: found[peer]) if found else None


def against_peers(records: Sequence[Record], arm: str, must: float, connections: int, peers: Sequence[str]) -> Figure:
    words = {"isolated": "guarded and isolated", "sealed": "guarded, isolated and sealed"}[arm]
    other = "an unguarded FastAPI route of raw octets" if peers == RAW else "the best unguarded framework"
    what = f"{words}, processor time as a ratio to {other}, LeNet size, {plural(connections)}"
    peer = best_peer(records, "lenet", connections, peers)
    if peer is None:
        return Figure(what, must, "", None, note="no peer could be measured")
    found = Spread.of(paired(records, ("peers", "lenet", connections), (arm, peer), processor, ratio))
    note = "" if peers == RAW else f"the best is {peer}; {beside(records, arm, connections)}"
    return Figure(what, must, "", found, note=note)


def beside(records: Sequence[Record], arm: str, connections: int) -> str:
    """The same ratio to each peer that was measured."""
    peers = sorted({r.arm for r in records if r.stage == "peers"} - {"unguarded", "guarded", "isolated", "sealed"})
    found = {
        peer: Spread.of(paired(records, ("peers", "lenet", connections), (arm, peer), processor, ratio))
        for peer in peers
    }
    return "to each: " + ", ".join(f"{peer} {spread.median:.2f}" for peer, spread in found.items() if spread)


def throughput(records: Sequence[Record]) -> Figure:
    pairs = paired(records, ("throughput", "resnet18", 32), ("guarded", "unguarded"), rate, ratio)
    what = "throughput guarded / unguarded, ResNet-18 size, 32 connections"
    return Figure(what, 0.97, "", Spread.of(pairs), least=True)


def tail(records: Sequence[Record], arm: str) -> Figure:
    """The 99th percentile at half load; both servers of a block get the same requests a second."""
    pairs, equal = _tails(records, arm), _tails(records, "control")
    what = f"p99 at half load, {arm} / unguarded in the same block, LeNet size"
    notes = ["open loop, at half of what this arm can do"]
    if pairs:
        notes.append("95 % interval of the median {:.2f} to {:.2f}".format(*interval(pairs)))
    if equal:
        low, high = interval(equal)
        notes.append(
            f"two unguarded servers by the same measure {statistics.median(equal):.2f} ({low:.2f} to {high:.2f})"
        )
    return Figure(what, 1.5, "", Spread.of(pairs), note="; ".join(notes))


def _tails(records: Sequence[Record], arm: str) -> list[float]:
    return paired(records, (f"latency-{arm}", "lenet", 32), (arm, "unguarded"), lambda r: r.p99_ms, ratio)


def start(records: Sequence[Record]) -> Figure:
    found = [seconds / 1000 for seconds in values(records, "start", "lenet", 1, "isolated", lambda r: r.p50_ms)]
    return Figure("start to first guarded answer, isolated", 1.5, "s", Spread.of(found), note="on all cores")


def all_figures(records: Sequence[Record]) -> list[Figure]:
    """The figures to reach that this bench measures, in the order of the page."""
    return [
        guard_added(records, 32),
        guard_added(records, 1),
        throughput(records),
        *(against_peers(records, "isolated", 1 / 3, c, peers) for peers in (FRAMEWORKS, RAW) for c in (32, 1)),
        *(against_peers(records, "sealed", 2 / 3, c, peers) for peers in (FRAMEWORKS, RAW) for c in (32, 1)),
        *(tail(records, arm) for arm in ("guarded", "isolated", "sealed")),
        start(records),
    ]
