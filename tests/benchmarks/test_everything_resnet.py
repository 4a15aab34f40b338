"""Ratios within a round, whichever way the machine went meanwhile."""

from __future__ import annotations

import json

from benchmarks.everything_resnet import report
from benchmarks.serving.driving import Measured


def measured(rate: float, processor_us: float) -> Measured:
    return Measured(rate, 1.0, 2.0, processor_us, 100)


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that becomes four times as slow from round to round changes no ratio."""
    rounds = [
        {"unguarded": measured(rate, 1e6 / rate), "everything": measured(rate * share, 1e6 / rate / share)}
        for rate, share in ((100.0, 0.97), (25.0, 0.98), (6.0, 0.99))
    ]
    found = report(rounds)
    assert found["throughput_ratio"]["median"] == found["processor_ratio"]["median"] == 0.98
    assert json.loads(json.dumps(found))["met"]
    worse = [{**figures, "everything": measured(figures["unguarded"].rate * 0.9, 1e6)} for figures in rounds]
    assert not report(worse)["met"]
