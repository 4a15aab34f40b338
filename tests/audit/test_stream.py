"""One stream of questions, replayed place by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.attacks.services import Linear, rows
from tests.attacks.tactics.worlds import Accounts

from garrison.attacks.oracle import Answers, MeteredOracle
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


def asked(service: Linear, log: Path, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[Answers, int]:
    """One trial over a stream that is kept; its answers, and how many rows the service itself was asked."""
    stream = SharedStream(service, log)
    found = MeteredOracle(stream, 100, 10).query(x)
    stream.close()
    return found, stream.asked


def test_an_interrupted_trial_is_answered_from_the_file_as_far_as_it_came(tmp_path: Path) -> None:
    log, x = tmp_path / "c" / "a.answers", rows(60)
    first, _ = asked(Linear(), log, x[:30])
    whole, paid = asked(Linear(), log, x)
    assert paid == 30
    assert first.probabilities is not None
    assert whole.probabilities is not None
    assert np.array_equal(whole.probabilities[:30], first.probabilities)
    assert np.array_equal(whole.labels, Linear().truth(x).argmax(axis=1))
    assert asked(Linear(), log, x)[1] == 0


@pytest.mark.parametrize("cut", [1, 9, 200])
def test_a_torn_end_is_cut_off_and_asked_again(tmp_path: Path, cut: int) -> None:
    log, x = tmp_path / "a.answers", rows(60)
    asked(Linear(), log, x)
    log.write_bytes(log.read_bytes()[:-cut])
    found, paid = asked(Linear(), log, x)
    assert paid == 10
    assert np.array_equal(found.labels, Linear().truth(x).argmax(axis=1))
    assert asked(Linear(), log, x)[1] == 0


def test_a_changed_byte_is_not_believed(tmp_path: Path) -> None:
    log, x = tmp_path / "a.answers", rows(60)
    asked(Linear(), log, x)
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(bytes(data))
    found, paid = asked(Linear(), log, x)
    assert 10 < paid <= 60
    assert np.array_equal(found.labels, Linear().truth(x).argmax(axis=1))


def test_refusals_and_accounts_are_kept_too(tmp_path: Path) -> None:
    log = tmp_path / "a.answers"
    for paid in (3, 0):
        stream = SharedStream(Linear(refuses_above=-1.0), log)
        with pytest.raises(RefusedError):
            stream.query(rows(3))
        assert stream.asked == paid
        stream.close()
    service = Accounts()
    stream = SharedStream(service)
    stream.query_as(rows(4), 2)
    stream.rewind().query_as(rows(4), 1)
    assert service.by_account == {2: 4, 1: 4}
