"""One stream of questions, replayed place by place."""

from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.services import Linear, rows

from garrison.attacks.oracle import MeteredOracle
from garrison.audit.stream import SharedStream
from garrison.errors import RefusedError, UnavailableError


def test_a_larger_budget_asks_only_what_is_new() -> None:
    service, x = Linear(), rows(60)
    stream = SharedStream(service)
    few = MeteredOracle(stream.rewind(), 100, 10).query(x[:20])
    meter = MeteredOracle(stream.rewind(), 100, 10)
    many = meter.query(x)
    assert np.array_equal(few.labels, many.labels[:20])
    assert (meter.rows, stream.asked, sum(len(part) for part in service.asked)) == (60, 60, 60)


def test_from_the_first_difference_on_the_service_is_asked() -> None:
    service, x = Linear(), rows(30)
    stream = SharedStream(service)
    MeteredOracle(stream.rewind(), 100, 10).query(x)
    changed = x.copy()
    changed[15] += 0.25
    found = MeteredOracle(stream.rewind(), 100, 10).query(changed)
    assert np.array_equal(found.labels, service.truth(changed).argmax(axis=1))
    assert stream.asked == 50


def test_a_repetition_within_a_trial_reaches_the_service() -> None:
    service = Linear()
    stream = SharedStream(service)
    for _ in range(2):
        stream.query(rows(5))
    assert len(service.asked) == 2


def test_refusals_are_replayed_and_failures_are_not() -> None:
    service = Linear(refuses_above=-1.0)
    stream = SharedStream(service)
    for _ in range(2):
        with pytest.raises(RefusedError):
            stream.rewind().query(rows(3))
    assert len(service.asked) == 1
    broken = Linear(breaks=True)
    stream = SharedStream(broken)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            stream.rewind().query(rows(3))
    assert len(broken.asked) == 2
