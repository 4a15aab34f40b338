"""From records to figures and tables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from benchmarks.serving.arms import OURS, Arm
from benchmarks.serving.environments import Environment, last_line, loose
from benchmarks.serving.figures import (
    FRAMEWORKS,
    RAW,
    REFERENCE_US,
    Figure,
    Spread,
    against_peers,
    all_figures,
    best_peer,
    guard_added,
    interval,
    paired,
    processor,
    ratio,
    start,
    tail,
    throughput,
)
from benchmarks.serving.quick import TOLERANCE, compare, ratios
from benchmarks.serving.records import Record

from benchmarks.serving import page


def rounds(arm: str, values: list[float], stage: str = "guard", model: str = "lenet", c: int = 32) -> list[Record]:
    return [Record(stage, model, c, k, arm, 1e6 / v, 1.0, v, v, 100) for k, v in enumerate(values)]


def test_spread_of_values() -> None:
    found = Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert found == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)
    assert Spread.of([]) is None


def test_pairs_are_taken_within_a_round_and_failed_rounds_are_left_out() -> None:
    records = [*rounds("guarded", [60, 120, 90]), *rounds("unguarded", [50, 100])]
    assert paired(records, ("guard", "lenet", 32), ("guarded", "unguarded"), processor, ratio) == pytest.approx(
        [1.2, 1.2]
    )
    records[0] = Record("guard", "lenet", 32, 0, "guarded", failure="it ended")
    assert paired(records, ("guard", "lenet", 32), ("guarded", "unguarded"), processor, ratio) == pytest.approx([1.2])
    assert math.isnan(ratio(1, 0))


def test_the_guards_time_is_scaled_by_the_measured_runtime() -> None:
    records = [*rounds("guarded", [80, 82, 84]), *rounds("unguarded", [60, 60, 60])]
    unscaled = guard_added(records, 32)
    assert unscaled.met is False  # 22 us, and nothing to scale by
    records += rounds("runtime", [3 * REFERENCE_US[32]] * 3, stage="runtime")
    found = guard_added(records, 32)
    assert found.judged == pytest.approx(22 / 3)
    assert found.met is True
    assert "7.3 us" in found.note
    assert guard_added([], 32).met is None


def test_the_best_framework_is_that_with_the_least_time_and_neither_ray_serve_nor_a_raw_route_is_one() -> None:
    records = [
        *rounds("fastapi", [200, 300], "peers"),
        *rounds("fastapi-json", [400, 500], "peers"),
        *rounds("mlserver", [450, 460], "peers"),
        *rounds("ray", [1, 1], "peers"),
        *rounds("isolated", [100, 150], "peers"),
    ]
    assert best_peer(records, "lenet", 32, FRAMEWORKS) == "fastapi-json"
    found = against_peers(records, "isolated", 1 / 3, 32, FRAMEWORKS)
    assert found.found is not None
    assert found.found.median == pytest.approx((100 / 400 + 150 / 500) / 2)
    assert found.met is True
    raw = against_peers(records, "isolated", 1 / 3, 32, RAW)
    assert raw.found is not None
    assert raw.found.median == pytest.approx((100 / 200 + 150 / 300) / 2)
    assert raw.met is False
    assert "raw octets" in raw.what
    assert against_peers(records, "sealed", 2 / 3, 32, FRAMEWORKS).met is None
    assert against_peers([], "sealed", 2 / 3, 32, FRAMEWORKS).note == "no peer could be measured"


def test_throughput_must_be_at_least_the_bound() -> None:
    good = [*rounds("guarded", [101], "throughput", "resnet18"), *rounds("unguarded", [100], "throughput", "resnet18")]
    assert throughput(good).met is True
    slow = [*rounds("guarded", [110], "throughput", "resnet18"), *rounds("unguarded", [100], "throughput", "resnet18")]
    assert throughput(slow).met is False


def test_the_interval_of_a_median_is_narrower_with_more_rounds_and_than_the_quartiles_of_many() -> None:
    few, many = [0.5, 1.0, 1.5, 2.0, 2.5], [0.5, 1.0, 1.5, 2.0, 2.5] * 20
    low, high = interval(many)
    assert 1.0 <= low <= 1.5 <= high <= 2.0
    wide = interval(few)
    assert wide[1] - wide[0] > high - low
    assert interval([2.0]) == (2.0, 2.0)


def test_what_two_equal_servers_differ_by_stands_beside_the_tail() -> None:
    records = [*rounds("sealed", [16, 18], "latency-sealed"), *rounds("unguarded", [10, 10], "latency-sealed")]
    assert "two unguarded servers" not in tail(records, "sealed").note
    assert "95 % interval of the median 1.60 to 1.80" in tail(records, "sealed").note
    records += [*rounds("control", [5, 15], "latency-control"), *rounds("unguarded", [10, 10], "latency-control")]
    assert "two unguarded servers by the same measure 1.00 (0.50 to 1.50)" in tail(records, "sealed").note


def test_tail_and_start() -> None:
    records = [*rounds("sealed", [16], "latency-sealed"), *rounds("unguarded", [10], "latency-sealed")]
    assert tail(records, "sealed").met is False
    assert tail(records, "isolated").met is None
    begun = [Record("start", "lenet", 1, k, "isolated", p50_ms=ms, requests=1) for k, ms in enumerate([900, 1200])]
    found = start(begun)
    assert found.found is not None
    assert found.found.median == pytest.approx(1.05)
    assert found.met is True


def test_the_table_says_what_is_met_and_what_was_not_measured() -> None:
    spread = Spread(0.5, 0.4, 0.6, 3)
    lines = page.figures_table(
        [
            Figure("a", 1 / 3, "", spread),
            Figure("b", 0.4, "us", spread, least=True, note="why"),
            Figure("c", 1.0, "s", None),
            Figure("d", 1.0, "us", Spread(-0.5, -1.0, 0.5, 3)),
        ]
    )
    assert "| at most 0.333 | 0.50 (0.40 to 0.60) | **no** |" in lines[2]
    assert "| at least 0.4 us | 0.50 (0.40 to 0.60) us | yes | why |" in lines[3]
    assert "not measured | - |" in lines[4]
    assert "-0.50 (-1.00 to 0.50) us | yes" in lines[5]


def test_a_peer_that_could_not_be_measured_is_named_with_its_reason() -> None:
    peer = Arm("mlserver", "MLServer", "JSON")
    records = [
        *rounds("unguarded", [50, 60], "peers"),
        Record("peers", "lenet", 32, 0, "mlserver", failure="cannot be installed: no such version"),
    ]
    lines = page.servers_table(records, [*OURS, peer], {"mlserver": "1.7.1"}, "lenet", 32)
    assert "| MLServer 1.7.1 | JSON | not measured: cannot be installed: no such version | | | |" in lines
    assert any("55.0 (52.5 to 57.5)" in line for line in lines)
    environment = {"fastapi": Environment(Path("python"), {"fastapi": "1.0", "onnxruntime": "2"})}
    text = page.text(records, [*OURS, peer], environment, "wrk", "")
    assert "it was not part of this run" in text
    assert "**LeNet size, 32 connections**" in text


def test_nothing_measured_meets_nothing() -> None:
    assert [figure.met for figure in all_figures([])] == [None] * 15


def test_ratios_against_kept_ones() -> None:
    records = [*rounds("guarded", [60, 66, 60]), *rounds("unguarded", [50, 55, 60])]
    found = ratios(records)
    assert found == {"guarded/unguarded, 32": pytest.approx(1.2)}
    assert compare(found, {"guarded/unguarded, 32": 1.2})[1]
    assert compare(found, {"guarded/unguarded, 32": 1.2 / TOLERANCE * 1.001})[1]
    lines, held = compare(found, {"guarded/unguarded, 32": 1.2 / TOLERANCE * 0.99})
    assert not held
    assert lines[0].startswith("FAIL")
    lines, held = compare({}, {"guarded/unguarded, 32": 1.2})
    assert not held
    assert "not measured" in lines[0]


def test_reasons_fit_into_a_cell() -> None:
    assert last_line("a\nERROR: `x` | y\n\n") == "ERROR: 'x' / y"
    assert last_line("") == ""
    assert loose("uvicorn[standard]==0.54.0") == "uvicorn[standard]"
