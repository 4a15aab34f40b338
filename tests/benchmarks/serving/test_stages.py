"""Which servers take turns in which rounds, and what an interrupted run still measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.serving.arms import OURS, Arm, Server
from benchmarks.serving.records import Book, Key, Record
from benchmarks.serving.stages import Run, Settings

SETTINGS = Settings(
    models=("lenet",),
    peers=(),
    guard_rounds=5,
    latency_rounds=3,
    sitting_rounds={"guard": 2, "latency": 2},
)


class Dry(Run):
    """Starts and measures nothing, and notes what would be.

    Attributes:
        started: the arms of each sitting.
        rounds: key and requests a second of each round.
    """

    def __init__(self, folder: Path, settings: Settings = SETTINGS, stop_after: int | None = None) -> None:
        super().__init__(settings, Book(folder, "same"), folder)
        self.started: list[list[str]] = []
        self.rounds: list[tuple[Key, float]] = []
        self.runtimes: list[int] = []
        self.failing: dict[str, str] = {}
        self._stop_after = stop_after

    @contextmanager
    def _servers(self, arms: Sequence[Arm], model: str) -> Iterator[tuple[list[Server], dict[str, str]]]:
        self.started.append([arm.name for arm in arms])
        yield [], self.failing

    def _runtime(self, number: int) -> None:
        self.runtimes.append(number)

    def _round(
        self, key: Key, servers: Sequence[Server], failed: dict[str, str], seconds: float, load: float = 0.0
    ) -> None:
        if len(self.rounds) == self._stop_after:
            raise KeyboardInterrupt
        self.rounds.append((key, load))
        rates = {"unguarded": 9_000.0, "control": 9_000.0, "guarded": 8_000.0, "isolated": 6_000.0, "sealed": 4_000.0}
        place = (key.stage, key.model, key.connections, key.round)
        self.book.add(Record(*place, arm, rate, requests=1) for arm, rate in rates.items() if arm not in self.failing)


def test_what_the_guard_adds_is_measured_by_two_servers_alone_in_several_sittings(tmp_path: Path) -> None:
    run = Dry(tmp_path)
    run.guard()
    assert run.started == [["unguarded", "guarded"]] * 3
    assert [(key.round, key.connections) for key, _ in run.rounds] == [(k, c) for k in range(5) for c in (32, 1)]
    assert run.runtimes == [0]


def test_the_quick_bench_lets_all_of_garrisons_servers_take_turns(tmp_path: Path) -> None:
    run = Dry(tmp_path, dataclasses.replace(SETTINGS, guard_arms=tuple(arm.name for arm in OURS)))
    run.guard()
    assert run.started[0] == ["unguarded", "guarded", "isolated", "sealed"]


def test_half_load_is_half_of_what_the_arm_itself_could_do_just_before(tmp_path: Path) -> None:
    run = Dry(tmp_path)
    run.latency()
    loads = {key.stage: load for key, load in run.rounds}
    assert loads == {
        "capacity-control": 0.0,
        "latency-control": 4_500.0,
        "capacity-guarded": 0.0,
        "latency-guarded": 4_000.0,
        "capacity-isolated": 0.0,
        "latency-isolated": 3_000.0,
        "capacity-sealed": 0.0,
        "latency-sealed": 2_000.0,
    }
    assert [(key.stage, key.round) for key, _ in run.rounds if key.stage.endswith("sealed")] == [
        (f"{what}-sealed", k) for k in range(3) for what in ("capacity", "latency")
    ]
    assert [key.round for key, _ in run.rounds if key.stage == "latency-sealed"] == [0, 1, 2]
    assert run.started == [["unguarded", "control", "guarded", "isolated", "sealed"]] * 2


def test_an_interrupted_run_starts_only_the_sittings_that_it_lacks(tmp_path: Path) -> None:
    whole = Dry(tmp_path / "whole")
    whole.guard()
    whole.latency()
    broken = Dry(tmp_path / "broken", stop_after=7)
    with suppress(KeyboardInterrupt):
        broken.guard()
    again = Dry(tmp_path / "broken")
    again.guard()
    again.latency()
    assert broken.rounds + again.rounds == whole.rounds
    assert len(again.started) == len(whole.started) - 1


def test_an_arm_whose_throughput_is_not_known_is_named_with_its_reason(tmp_path: Path) -> None:
    run = Dry(tmp_path)
    run.failing = {"sealed": "it did not start"}
    run.latency()
    assert "latency-sealed" not in {key.stage for key, _ in run.rounds}
    failures = [record for record in run.book.records if record.failure]
    assert {(record.stage, record.arm, record.failure) for record in failures} == {
        ("latency-sealed", "sealed", "it did not start")
    }
