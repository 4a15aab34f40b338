"""Malformed requests against an isolated server, over HTTP (JSON and binary tensors) and gRPC: does it stay up, say clear errors, and answer the well-formed ones among them?

    python -m benchmarks.fuzzing                          # make bench ONLY=fuzzing, 1,000,000 requests
    python -m benchmarks.fuzzing --count 20000 --seed 7   # make bench ONLY=fuzzing COUNT=20000

Mutations are drawn from the seed. Of the requests, 88 % are mutated HTTP with good framing, 8 % mutated bytes of HTTP with its framing, 3 % mutated messages and metadata over gRPC,
1 % mutated bytes of a gRPC connection. Must hold: no response with status 500 or in another form than the documented one, every well-formed request that
comes in between is answered rightly, the enclave is the same process to the end, memory stays flat, and the ledger verifies. Ends with exit code 1 where that is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.endurance import resident, verified
from benchmarks.fuzzing.mutations import Mutator, RequestMutator
from benchmarks.fuzzing.rpc import Calls, recorded
from benchmarks.fuzzing.talk import Framed, Seen, Wire
from benchmarks.fuzzing.world import World, world
from benchmarks.serving.driving import tree

from benchmarks import pages

SHARES = {"HTTP, framed": 0.88, "HTTP, wire": 0.08, "gRPC, calls": 0.03, "gRPC, wire": 0.01}
ROUNDS = 10
SHOWN, LONGEST = 5, 1_500
FLAT = 0.05
"""Memory counts as flat where what processes have of their own grows by no more than this share of all that they held after the first of ten rounds."""
_OWN_KIB = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


@dataclass
class Found:
    """What came of it.

    Attributes:
        whole: MiB of all processes after the first round.
        memory: MiB of them after each round that are their own, without the pages of files, of which the system maps now more and now fewer.
        enclaves: processes that served, the first of the server's children.
        ledger: whether it verifies, `entries` how many answers and refusals stand in it.
        traces: exceptions in the server's log.
        begun_anew: how often grpcio ended its server, at a path that is no UTF-8, and another one began.
    """

    seed: int
    seen: dict[str, Seen] = field(default_factory=lambda: {name: Seen() for name in SHARES})
    whole: float = 0.0
    memory: list[float] = field(default_factory=list)
    enclaves: set[int] = field(default_factory=set)
    ledger: bool = False
    entries: int = 0
    traces: list[str] = field(default_factory=list)
    begun_anew: int = 0

    @property
    def growth(self) -> float:
        return (max(self.memory) - self.memory[0]) / self.whole

    def figures(self) -> dict[str, tuple[str, str, bool]]:
        """By figure: what must be, what was measured, whether it is so."""
        seen = self.seen.values()
        good, wrong = sum(s.good for s in seen), sum(s.wrong for s in seen)
        bad, late = sum(len(s.bad) for s in seen), sum(s.late for s in seen)
        return {
            "mutated requests; those that stayed valid were answered, the others refused": ("", f"{sum(s.sent for s in seen):,}", True),
            "well-formed ones among them, answered rightly": ("all", f"{good:,} of {good + wrong:,}", wrong == 0 < good),
            "status 500, an undocumented error, no answer in time": ("0", str(bad + late), bad + late == 0),
            "exceptions in the log": ("0", str(len(self.traces)), not self.traces),
            "gRPC servers begun anew, after a path that is no UTF-8": ("", str(self.begun_anew), True),
            "enclaves started anew": ("0", str(len(self.enclaves) - 1), len(self.enclaves) == 1),
            "memory, highest against the first tenth": (f"within {FLAT:.0%}", f"{self.growth:+.1%} of {self.whole:.0f} MiB ({self.memory[0]:.0f} to {max(self.memory):.0f} of their own)", self.growth <= FLAT),
            "`garrison ledger verify`": ("holds", f"{'holds' if self.ledger else 'does not hold'}, {self.entries:,} entries", self.ledger),
        }  # fmt: skip


def senders(here: World, seed: int) -> dict[str, Framed | Wire | Calls]:
    """One a way, each with random numbers of its own."""
    binary, in_json = here.binary(), here.in_json()
    corpus = [*binary, *in_json, *here.others()]
    pieces = [request.wire() for request in corpus]
    host, _, port = here.grpc.rpartition(":")
    calls = [recorded(here.grpc, message) for message in here.messages()[:2]]
    draw = {name: random.Random(f"{seed} {name}") for name in SHARES}
    return {
        "HTTP, framed": Framed(
            here.http, RequestMutator(draw["HTTP, framed"], corpus), [*binary, *in_json], here.is_right
        ),
        "HTTP, wire": Wire(here.http, Mutator(draw["HTTP, wire"], pieces), pieces, reads_http=True),
        "gRPC, calls": Calls(here.grpc, draw["gRPC, calls"], here.messages(), here.is_right_binary),
        "gRPC, wire": Wire((host, int(port)), Mutator(draw["gRPC, wire"], calls), calls, reads_http=False),
    }


def fuzz(count: int, seed: int, folder: Path) -> Found:
    """So many malformed requests, in ten rounds."""
    found = Found(seed)
    with world(folder) as here:
        ways = senders(here, seed)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                try:
                    way.run(max(1, round(count * SHARES[name] / ROUNDS)), found.seen[name])
                except OSError as error:
                    tail = (folder / "log").read_text()[-LONGEST:]
                    raise RuntimeError(f"the server does not take connections any more ({name}): {tail}") from error
            found.memory.append(own(here.pid))
            found.whole = found.whole or sum(resident(here.pid).values())
            found.enclaves.add(list(tree(here.pid))[1])
    report = verified(folder)
    found.ledger, found.entries = report["verified"], sum(chain["answers"] for chain in report["chains"])
    log = (folder / "log").read_text()
    found.traces, found.begun_anew = traces(log), log.count("the gRPC server has ended by itself")
    return found


def own(pid: int) -> float:
    """MiB of a process and all that it started, without pages of files."""
    found = 0
    for one in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found += sum(map(int, _OWN_KIB.findall(Path(f"/proc/{one}/status").read_text())))
    return found / 1024


def traces(log: str) -> list[str]:
    """The ends of the exceptions in a log."""
    return [part[-LONGEST:] for part in log.split("Traceback")[1:]]


def page(found: Found, command: str) -> str:
    """The part of docs/benchmarks.md."""
    lines = ["| figure | must | measured | met |", "|---|---|---|---|"]
    lines += [f"| {name} | {must} | {value} | {'yes' if met else '**no**'} |" for name, (must, value, met) in found.figures().items()]  # fmt: skip
    ways = ["| way | mutated | a second | answers by status or code | connections ended |", "|---|---|---|---|---|"]
    for name, seen in found.seen.items():
        told = seen.statuses or seen.codes
        by = ", ".join(f"{key}: {count:,}" for key, count in sorted(told.items(), key=lambda pair: -pair[1])[:8])
        ways.append(f"| {name} | {seen.sent:,} | {seen.sent / max(seen.seconds, 1e-9):,.0f} | {by} | {seen.ended:,} |")
    return "\n\n".join((f"{pages.made(command)} Seed {found.seed}.", "\n".join(lines), "\n".join(ways)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=int(os.environ.get("COUNT") or 1_000_000))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="put it into docs/benchmarks.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = fuzz(given.count, given.seed, Path(name))
    text = page(found, f"make bench ONLY=fuzzing COUNT={given.count}")
    print(text)
    for what in (*(f"{name}: {bad}" for name, seen in found.seen.items() for bad in seen.bad), *found.traces[:SHOWN]):
        print(what, file=sys.stderr)
    if given.table:
        pages.write("fuzzing", text)
    if not all(met for _, _, met in found.figures().values()):
        sys.exit("not all that must hold held")


if __name__ == "__main__":
    main()
