"""The stages of a run: which servers take turns, how often, with how much load. Rounds are interleaved, and the order is rotated.

Figures that are small against what two rounds differ by, `guard` and `latency`, are measured in many short rounds of the servers that they compare, in
several sittings: each starts the servers anew, so that no figure hangs on how the memory of one process came to lie.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.serve_lenet import SERVER_CORE, free_port, pinned
from benchmarks.serving.arms import CONTROL, OURS, Arm, ArmError, Server, garrison_command, peer_arm, serving, stop
from benchmarks.serving.driving import ROOT, LoadError, PoolUsedUpError, drive, measure, pool_size, settle
from benchmarks.serving.environments import PEERS, Environment, ready
from benchmarks.serving.figures import rate as rate_of
from benchmarks.serving.figures import values
from benchmarks.serving.models import MODELS, Prepared, prepare
from benchmarks.serving.records import Book, Key, Record

from benchmarks.serving import pools
from garrison.errors import GarrisonError

FIRST_GUESS, CONNECTIONS = 2_000.0, (32, 1)
_TRIES = 5
"""Of an arm whose pool is used up, each with twice as many requests."""
BATCHES = (1, 32)
HALF = 0.5
AT_HALF_LOAD = (CONTROL, *(arm for arm in OURS if arm.guarded))
RUNTIME_EVERY, RUNTIME_SECONDS = 5, 60.0
"""The bare runtime is measured in one of so many rounds, and must have ended after so many seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How long a run is. `rounds` by stage, for the peers by model; seconds of load for each arm, in each round.

    Attributes:
        guard_arms: the servers that take turns where what the guard adds is measured.
        sitting_rounds: so many rounds of `guard` and `latency` use the same servers before they are started anew.
    """

    models: tuple[str, ...] = tuple(MODELS)
    peers: tuple[str, ...] = tuple(PEERS)
    guard_arms: tuple[str, ...] = ("unguarded", "guarded")
    guard_rounds: int = 40
    guard_seconds: float = 1.0
    sitting_rounds: dict[str, int] = field(default_factory=lambda: {"guard": 10, "latency": 10})
    peer_rounds: dict[str, int] = field(default_factory=lambda: {"lenet": 5, "mlp": 3, "resnet18": 2})
    throughput_rounds: int = 40
    latency_rounds: int = 50
    starts: int = 7
    seconds: float = 2.0
    large_seconds: float = 4.0
    capacity_seconds: float = 1.0
    latency_seconds: float = 1.5
    warm_seconds: float = 1.0


class Progress:
    """Tells how far a run is, on standard error."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def tell(self, text: str) -> None:
        took = time.monotonic() - self._start
        print(
            f"[{self._done}/{self._total}, {int(took) // 60}:{int(took) % 60:02d}] {text}", file=sys.stderr, flush=True
        )

    def step(self, text: str) -> None:
        self._done += 1
        self.tell(text)


class Run:
    """One run of the bench: its settings, its book, the servers that are up."""

    def __init__(self, settings: Settings, book: Book, folder: Path) -> None:
        self.settings, self.book, self.folder = settings, book, folder
        self.progress = Progress(self._steps())
        self.environments: dict[str, Environment] = {}
        self._prepared: dict[str, Prepared] = {}

    def _steps(self) -> int:
        s = self.settings
        peers = sum(s.peer_rounds[model] for model in s.models) * len(CONNECTIONS) if s.peers else 0
        latency = 2 * len(AT_HALF_LOAD) * s.latency_rounds
        return s.guard_rounds * len(CONNECTIONS) + peers + s.throughput_rounds + latency + s.starts

    def everything(self) -> None:
        self.guard()
        if self.settings.peers:
            self.environments = {name: ready(PEERS[name], self.progress.tell) for name in self.settings.peers}
            for model in self.settings.models:
                self.peers(model)
        self.throughput()
        self.latency()
        self.start()

    def prepared(self, model: str) -> Prepared:
        """The model's files, made when they are needed first."""
        if model not in self._prepared:
            self.progress.tell(f"making and sealing the model {model}")
            self._prepared[model] = prepare(MODELS[model], self.folder / "models" / model)
        return self._prepared[model]

    def guard(self) -> None:
        """What the guard adds, LeNet size: the unguarded and the guarded server alone, in short rounds; the bare runtime beside them."""
        arms = [arm for arm in OURS if arm.name in self.settings.guard_arms]
        for rounds in self._sittings("guard", self.settings.guard_rounds):
            keys = [Key("guard", "lenet", c, k) for k in rounds for c in CONNECTIONS]
            if self._skip(keys):
                continue
            with self._servers(arms, "lenet") as (servers, failed):
                for key in keys:
                    if self._skip([key]):
                        continue
                    if key.connections == CONNECTIONS[0] and key.round % RUNTIME_EVERY == 0:
                        self._runtime(key.round)
                    self._round(key, servers, failed, self.settings.guard_seconds)

    def peers(self, model: str) -> None:
        """All servers on one model."""
        rounds = self.settings.peer_rounds[model]
        keys = [Key("peers", model, c, k) for k in range(rounds) for c in CONNECTIONS]
        if self._skip(keys):
            return
        seconds = self.settings.large_seconds if model == "resnet18" else self.settings.seconds
        arms = (*OURS, *map(peer_arm, self.settings.peers))
        with self._servers(arms, model) as (servers, failed):
            for key in keys:
                if not self._skip([key]):
                    self._round(key, servers, failed, seconds)

    def throughput(self) -> None:
        """What the guard costs a large model: the unguarded and the guarded server alone, by turns of one request a connection.

        A turn takes two seconds, so that both servers of a round find the machine alike; and no request is cut off at its end, of which
        there are so few that one more or less would look like some per cent.
        """
        keys = [Key("throughput", "resnet18", CONNECTIONS[0], k) for k in range(self.settings.throughput_rounds)]
        if "resnet18" not in self.settings.models or self._skip(keys):
            return
        with self._servers([arm for arm in OURS if arm.name in {"unguarded", "guarded"}], "resnet18") as (up, failed):
            for key in keys:
                if not self._skip([key]):
                    self._round(key, up, failed, 0.0)

    def latency(self) -> None:
        """Open loop, LeNet size: each guarded arm, and the control, against the unguarded server, at half of what the arm can do."""
        names = [arm.name for arm in AT_HALF_LOAD]
        for rounds in self._sittings("latency", self.settings.latency_rounds):
            keys = [(name, Key(f"latency-{name}", "lenet", CONNECTIONS[0], k)) for k in rounds for name in names]
            if self._skip([key for _, key in keys]):
                continue
            with self._servers((OURS[0], *AT_HALF_LOAD), "lenet") as (servers, failed):
                for name, key in keys:
                    if not self._skip([key]):
                        self._half_load(name, key, servers, failed)

    def _half_load(self, name: str, key: Key, servers: Sequence[Server], failed: dict[str, str]) -> None:
        """One block: what the arm can do just now, then both servers at half of it."""
        pair = {name, "unguarded"}
        mine = {arm: why for arm, why in failed.items() if arm in pair}
        load = HALF * self._capacity(name, key, servers, mine)
        if load:
            both = [server for server in servers if server.arm.name in pair]
            self._round(key, both, mine, self.settings.latency_seconds, load)
            return
        why = mine.get(name, "its throughput is not known")
        self.book.add([_record(key, name, failure=why)])
        self.progress.step(f"{key.stage}, round {key.round + 1}: not measured, {why}")

    def _capacity(self, name: str, block: Key, servers: Sequence[Server], failed: dict[str, str]) -> float:
        """Requests a second that the arm answers, 0 if none. Measured before each block: a shared machine's speed changes by a third in minutes."""
        key = replace(block, stage=f"capacity-{name}")
        if not self._skip([key]):
            arm = [server for server in servers if server.arm.name == name]
            why = {arm: why for arm, why in failed.items() if arm == name}
            self._round(key, arm, why, self.settings.capacity_seconds)
        return max((r.rate for r in self.book.records if r.key == key and r.arm == name), default=0.0)

    def start(self) -> None:
        """From the command to the first good answer, guarded and isolated, on all cores."""
        arm = next(arm for arm in OURS if arm.name == "isolated")
        for k in range(self.settings.starts):
            key = Key("start", "lenet", 1, k)
            if self._skip([key]):
                continue
            try:
                took = first_answer(arm, self.prepared("lenet"), self.folder / "start")
                record = Record("start", "lenet", 1, k, arm.name, p50_ms=took * 1e3, requests=1)
            except (OSError, ArmError) as error:
                record = Record("start", "lenet", 1, k, arm.name, failure=str(error))
            self.book.add([record])
            self.progress.step(f"start: {record.failure or f'{record.p50_ms:.0f} ms'}")

    def _sittings(self, stage: str, rounds: int) -> Iterator[range]:
        """The rounds of a stage, in groups for which the servers are started once."""
        step = self.settings.sitting_rounds[stage]
        return (range(first, min(first + step, rounds)) for first in range(0, rounds, step))

    def _skip(self, keys: Sequence[Key]) -> bool:
        return all(self.book.has(key) for key in keys)

    @contextmanager
    def _servers(self, arms: Sequence[Arm], model: str) -> Iterator[tuple[list[Server], dict[str, str]]]:
        """Those that run, and why the others do not."""
        prepared = self.prepared(model)
        running: list[Server] = []
        failed: dict[str, str] = {}
        with ExitStack() as stack:
            for arm in arms:
                self.progress.tell(f"{model}: starting {arm.title}")
                environment = self.environments.get(arm.name)
                try:
                    server = stack.enter_context(
                        serving(arm, prepared, environment, self.folder / "servers" / arm.name)
                    )
                    with server.awake():
                        self._warm(server)
                    running.append(server)
                except (ArmError, LoadError, GarrisonError, OSError) as error:
                    failed[arm.name] = str(error)
                    self.progress.tell(f"{arm.title}: {error}")
            yield running, failed

    def _warm(self, server: Server) -> None:
        pool = self._pool(server, FIRST_GUESS, self.settings.warm_seconds)
        drive(server.url, pool, self.settings.warm_seconds, CONNECTIONS[0])

    def _pool(self, server: Server, rate: float, seconds: float) -> pools.Pool:
        rate = min(rate, 60.0) if server.model.name == "resnet18" else rate
        found = server.pool(self.folder / "servers" / server.arm.name / "pool", pool_size(rate, seconds))
        settle(server.pid)
        return found

    def _round(
        self, key: Key, servers: Sequence[Server], failed: dict[str, str], seconds: float, load: float = 0.0
    ) -> None:
        """All arms once, in an order that each round rotates."""
        shift = key.round % max(1, len(servers))
        records = [_record(key, name, failure=why) for name, why in failed.items()]
        records += [self._one(key, server, seconds, load) for server in (*servers[shift:], *servers[:shift])]
        self.book.add(records)
        shown = ", ".join(f"{r.arm} {r.processor_us:.0f}" for r in records if not r.failure)
        self.progress.step(f"{key.stage} {key.model}, {key.connections} connections, round {key.round + 1}: us {shown}")

    def _one(self, key: Key, server: Server, seconds: float, load: float) -> Record:
        rate = load or self._expected(key, server)
        try:
            with server.awake():
                for _ in range(_TRIES):
                    pool = self._pool(server, rate, seconds)
                    try:
                        found = measure(server.pid, server.url, pool, seconds, key.connections, load)
                        break
                    except PoolUsedUpError:
                        rate *= 2
                else:
                    raise LoadError("it answers faster than can be sealed beforehand")
        except (ArmError, LoadError, GarrisonError, OSError) as error:
            self.progress.tell(f"{server.arm.title}: {error}")
            return _record(key, server.arm.name, failure=str(error))
        return _record(
            key,
            server.arm.name,
            rate=found.rate,
            p50_ms=found.p50_ms,
            p99_ms=found.p99_ms,
            processor_us=found.processor_us,
            requests=found.requests,
        )

    def _expected(self, key: Key, server: Server) -> float:
        """Requests a second that an arm has answered so far, for the size of its pool."""
        found = values(self.book.records, key.stage, key.model, key.connections, server.arm.name, rate_of)
        return max(found, default=FIRST_GUESS)

    def _runtime(self, number: int) -> None:
        """The bare runtime on the same core; without it no figure is scaled, and the page says so."""
        file = self.prepared("lenet").plain
        command = [sys.executable, "-m", "benchmarks.serving.bare_runtime", str(file), *map(str, BATCHES)]
        try:
            done = subprocess.run(
                pinned(SERVER_CORE, command),
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
                timeout=RUNTIME_SECONDS,
            )
        except subprocess.SubprocessError as error:
            self.progress.tell(f"the bare runtime could not be measured: {error}")
            return
        found = {int(batch): us for batch, us in json.loads(done.stdout).items()}
        self.book.add(
            Record("runtime", "lenet", batch, number, "runtime", processor_us=us, requests=1)
            for batch, us in found.items()
            if not self.book.has(Key("runtime", "lenet", batch, number))
        )


def _record(
    key: Key,
    arm: str,
    *,
    rate: float = 0.0,
    p50_ms: float = 0.0,
    p99_ms: float = 0.0,
    processor_us: float = 0.0,
    requests: int = 0,
    failure: str = "",
) -> Record:
    place = (key.stage, key.model, key.connections, key.round, arm)
    return Record(*place, rate, p50_ms, p99_ms, processor_us, requests, failure)


def first_answer(arm: Arm, prepared: Prepared, folder: Path) -> float:
    """Seconds from the command to the first good answer.

    Raises:
        ArmError: there is none.
    """
    port = free_port()
    command = garrison_command(arm, prepared, port, folder)
    body = pools.encode(prepared.model.rows()[0], prepared.model.name)
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while process.poll() is None and time.perf_counter() - began < pools.ANSWER_SECONDS:
            try:
                pools.ask(f"http://127.0.0.1:{port}", body)
                return time.perf_counter() - began
            except OSError:
                time.sleep(0.01)
        raise ArmError("it did not start")
    finally:
        stop(process)
