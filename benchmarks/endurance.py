"""Minutes at full load with everything on: does memory stay flat, does every answer's signature hold, does the ledger?

    python -m benchmarks.endurance                     # make bench ONLY=endurance, 10 minutes
    python -m benchmarks.endurance --minutes 2         # make bench ONLY=endurance MINUTES=2
    python -m benchmarks.endurance --table             # and put the table into docs/benchmarks.md

`garrison serve` with model and guard in a process of their own, API keys, a budget, detectors of thieves, drift, misinformation, and a ledger that is synchronised before
an answer leaves. 32 callers ask at once, each with its own key, one honest picture after the other. Every answer is verified while the load runs
(`benchmarks.proved_load`), none is sampled. Afterwards `garrison ledger verify` must hold, and each answer must stand in the ledger once, with the digest that
its caller got. Ends with exit code 1 where anything that must hold did not.

The model is the hardened one of `make bench ONLY=theft` where that is there (`--model`), else a LeNet with random weights; sealing puts the guard in front.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.proved_load import Held, ProvedLoad, Told, hold_against
from benchmarks.serve_lenet import LOAD_CORE, lenet, server
from benchmarks.serving.driving import spent_seconds, tree

from benchmarks import pages
from garrison import datasets
from garrison.crypto.owner import OwnerKey
from garrison.guard.defenses.budget import Budget
from garrison.hardening.data import Rows
from garrison.protocol.oip_client import encode_request
from garrison.sealing.formats import read_source
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source
from garrison.server.key_file import add_key
from garrison.types import Array

VICTIM = Path(__file__).parents[1] / "out/bench/seed-0/hardened/model.onnx"
CONNECTIONS, NEVER_REACHED = 32, 10**12
CALIBRATION = 10_000
FLAT, WARM_SHARE, WARM_SECONDS = 0.05, 0.2, 60.0
"""Memory counts as flat within this share; so much of the time, and at most so many seconds, is the warm-up."""


@dataclass
class Watched:
    """The server, once a second: MiB of each of its processes by role, answers so far, its processor time.

    Attributes:
        start: by `time.monotonic`.
    """

    pid: int
    start: float = field(default_factory=time.monotonic)
    times: list[float] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)

    def look(self, told: Told) -> None:
        self.times.append(time.monotonic() - self.start)
        self.memory.append(resident(self.pid))
        self.answers.append(len(told.answered))
        self.spent.append(spent_seconds(self.pid))

    def run(self, told: Told, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            self.look(told)


def resident(pid: int) -> dict[str, float]:
    """MiB of a server's processes: the enclave's is the first one that it started, the spare comes later."""
    found: dict[str, float] = {}
    for one in tree(pid):
        role = "server" if one == pid else "spare" if "enclave" in found else "enclave"
        try:
            pages_ = int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        found[role] = found.get(role, 0.0) + pages_ * os.sysconf("SC_PAGE_SIZE") / 2**20
    return found


def sealed(folder: Path, victim: Path) -> tuple[Path, str]:
    """The bundle, calibrated with all that sealing knows, and which model it holds. Its owner's public key lies beside it."""
    owner, bundle, model = OwnerKey.generate(), folder / "bundle", "the hardened Fashion-MNIST victim"
    if not victim.exists():
        victim, model = folder / "lenet.onnx", "LeNet, random weights"
        victim.write_bytes(lenet().SerializeToString())
    rows = Rows({"x": datasets.load("fashion-mnist", "train").x[:CALIBRATION]}, None, None, "")
    options = SealOptions(name="victim", watch_action="misinform", budget=Budget(rows=NEVER_REACHED))
    manifest = seal(draft_from_source(read_source(victim), rows, options), owner, bundle)
    (folder / "owner.pub").write_bytes(owner.public.pem)
    return bundle, f"{model}, behind {', '.join(spec.name for spec in manifest.guard)}"


def bodies(bundle: Path) -> list[tuple[bytes, int]]:
    """Honest pictures that no calibration has seen, as requests of one row."""
    (tensor,) = json.loads((bundle / "manifest.json").read_text())["inputs"]
    x: Array = datasets.load("fashion-mnist", "train").x[CALIBRATION:]
    x = np.ascontiguousarray(x, np.float32).reshape(len(x), 1, *tensor["shape"])
    return [encode_request({tensor["name"]: row}) for row in x]


def load_for(load: ProvedLoad, watched: Watched, seconds: float) -> Told:
    """Full load for so long, while memory is looked at."""
    ended = threading.Event()
    looking = threading.Thread(target=watched.run, args=(load.told, ended))
    looking.start()
    try:
        return load.run(after(seconds))
    finally:
        ended.set()
        looking.join()


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def verified(folder: Path) -> dict[str, Any]:
    """What `garrison ledger verify` says, in JSON; "took" in seconds."""
    started = time.monotonic()
    words = [
        "ledger",
        "verify",
        str(folder / "ledger"),
        "--trust",
        str(folder / "owner.pub"),
        "--allow-simulated",
        "--json",
    ]
    done = subprocess.run([sys.executable, "-m", "garrison", *words], capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(f"garrison ledger verify says nothing: {done.stderr[-500:]}")
    return {**json.loads(done.stdout), "took": time.monotonic() - started}


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB after the warm-up and at the end (medians of a tenth of the time), the highest after the warm-up, by role and in all."""

    first: dict[str, float]
    last: dict[str, float]
    highest: dict[str, float]

    @property
    def growth(self) -> float:
        """As a share of what it was after the warm-up."""
        return self.last["all"] / self.first["all"] - 1

    @property
    def peak(self) -> float:
        return self.highest["all"] / self.first["all"] - 1

    @classmethod
    def of(cls, watched: Watched) -> Memory:
        seconds = watched.times[-1]
        warm = min(WARM_SHARE * seconds, WARM_SECONDS)
        samples = [m for t, m in zip(watched.times, watched.memory, strict=True) if t >= warm]
        lines = [{**m, "all": sum(m.values())} for m in samples]
        tenth = max(1, len(lines) // 10)
        roles = ("server", "enclave", "spare", "all")

        def of(part: list[dict[str, float]], how: Callable[[list[float]], float]) -> dict[str, float]:
            return {role: how([line.get(role, 0.0) for line in part]) for role in roles}

        return cls(of(lines[:tenth], statistics.median), of(lines[-tenth:], statistics.median), of(lines, max))


def judge(memory: Memory, told: Told, ledger: dict[str, Any], held: Held) -> dict[str, tuple[str, str, bool]]:
    """By figure: what must be, what was measured, whether it is so."""
    answers = len(told.answered)
    entries = sum(chain["answers"] for chain in ledger["chains"])
    lost = held.missing + held.doubled + held.other + held.unclaimed + held.strange
    return {
        "memory of all its processes, end against after the warm-up": (
            f"within {FLAT:.0%}", f"{memory.growth:+.1%} (highest {memory.peak:+.1%})", max(abs(memory.growth), memory.peak) <= FLAT,
        ),
        "requests that failed": ("0", f"{told.errors} of {told.sent:,}", told.errors == 0 and answers > 0),
        "answers whose signature, request, nonce, model and guard hold": (
            "all", f"{answers:,} of {told.statuses[200]:,}", answers == told.statuses[200],
        ),
        "`garrison ledger verify`": ("holds", f"{'holds' if ledger['verified'] else 'does not hold'}, {ledger['took']:.0f} s", ledger["verified"]),
        "entries in the ledger": (f"{answers:,}, each once", f"{entries:,}; {lost} lost, doubled or other", entries == answers and lost == 0),
    }  # fmt: skip


def minutes_table(watched: Watched) -> str:
    """A line a minute, or a tenth of a shorter run."""
    step = min(60.0, watched.times[-1] / 10)
    lines = [
        "| minute | answers a second | processor us an answer | server MiB | enclave MiB | spare MiB |",
        "|---|---|---|---|---|---|",
    ]
    before = watched.times[0], watched.answers[0], watched.spent[0]
    for k, t in enumerate(watched.times):
        if t < (len(lines) - 1) * step and k < len(watched.times) - 1:
            continue
        asked, spent = watched.answers[k] - before[1], watched.spent[k] - before[2]
        memory = [f"{watched.memory[k].get(role, 0.0):.1f}" for role in ("server", "enclave", "spare")]
        if asked:
            lines.append(
                f"| {t / 60:.2g} | {asked / (t - before[0]):,.0f} | {spent / asked * 1e6:.0f} | {' | '.join(memory)} |"
            )
        before = t, watched.answers[k], watched.spent[k]
    return "\n".join(lines)


def page(command: str, model: str, watched: Watched, told: Told, found: dict[str, tuple[str, str, bool]]) -> str:
    """The part of docs/benchmarks.md."""
    seconds = watched.times[-1]
    busy = (watched.spent[-1] - watched.spent[0]) / (watched.times[-1] - watched.times[0])
    p50, p99 = np.percentile(told.latencies, [50, 99]) * 1e3
    head = (
        f"{pages.made(command)}\n\nThe model: {model}. {CONNECTIONS} callers for {seconds / 60:.1f} minutes; {len(told.answered) / seconds:,.0f} "
        f"answers a second, p50 {p50:.1f} ms, p99 {p99:.1f} ms; the server's processes together used {busy:.2f} of a core, which they shared, and the load generator the other core."
    )
    return "\n\n".join((head, pages.verdicts(found), minutes_table(watched)))


def endure(given: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """The page's part, and whether all that must hold held."""
    bundle, model = sealed(folder, given.model)
    keys = [add_key(folder / "keys.json", f"caller-{k}") for k in range(CONNECTIONS)]
    words = ["--trust", str(folder / "owner.pub"), "--port", "0", "--state", str(folder / "state")]
    words += ["--keys", str(folder / "keys.json"), "--ledger", str(folder / "ledger"), "--isolation", "process"]
    requests = bodies(bundle)
    with server([sys.executable, "-m", "garrison", "serve", str(bundle), *words]) as (pid, url):
        os.sched_setaffinity(0, {LOAD_CORE} & os.sched_getaffinity(0) or os.sched_getaffinity(0))
        load = ProvedLoad(url, "/v2/models/victim/infer", requests, connections=CONNECTIONS, api_keys=keys)
        watched = Watched(pid)
        told = load_for(load, watched, given.minutes * 60.0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    found = judge(Memory.of(watched), told, verified(folder), hold_against(folder / "ledger", load))
    for why in (told.unproved + told.wrong)[:5]:
        print(why, file=sys.stderr)
    command = f"make bench ONLY=endurance MINUTES={given.minutes:g}"
    return page(command, model, watched, told, found), all(met for _, _, met in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES") or 10))
    parser.add_argument("--model", type=Path, default=VICTIM)
    parser.add_argument(
        "--folder", help="where the ledger lies, 1 to 2 GB for 10 minutes; a disk that counts, not memory"
    )
    parser.add_argument("--table", action="store_true", help="put it into docs/benchmarks.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        text, met = endure(given, Path(name))
    print(text)
    if given.table:
        pages.write("endurance", text)
    if not met:
        sys.exit("not all that must hold held")


if __name__ == "__main__":
    main()
