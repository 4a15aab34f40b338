"""The table of sessions: bounds, replays, whose a session is, and how one ends."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.enclave.session_holding import START, Held

from garrison.crypto.hpke import X25519
from garrison.enclave.sessions import WINDOW, Sessions, Window
from garrison.errors import ReplayError, SealedRequestError, StaleSessionError
from garrison.limits import Limits
from garrison.protocol.sealed_session import Bound, Offer

LIMITS = Limits(session_seconds=100, session_requests=50, sessions=6, sessions_a_caller=3)
SIGNING, MODEL, GUARD = b"s" * 32, "m" * 64, "g" * 64
count = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> Sessions:
    return Sessions(SIGNING, MODEL, GUARD, limits=LIMITS, clock=clock)


def begin(table: Sessions, caller: str = "alice", ends: float = START + 1e6) -> Held | None:
    offer, first = Offer(X25519), b"first %d" % next(count)
    grant = table.grant(X25519, caller, caller, first, offer.content, ends)
    if grant is None:
        return None
    return Held(grant.session, offer.take(grant, first, Bound(SIGNING, MODEL, GUARD, caller)))


def begun(table: Sessions, caller: str = "alice", ends: float = START + 1e6) -> Held:
    found = begin(table, caller, ends)
    assert found is not None
    return found


def lives(table: Sessions, held: Held, counter: int, caller: str = "alice") -> bool:
    try:
        table.open(caller, held.ask(counter))
    except StaleSessionError:
        return False
    return True


def test_each_counter_is_opened_once_in_any_order(table: Sessions) -> None:
    held = begun(table)
    order = list(range(LIMITS.session_requests))
    random.Random(0).shuffle(order)
    asks = {counter: held.ask(counter, b"%d" % counter) for counter in order}
    for counter in order:
        head, body, _ = table.open("alice", asks[counter])
        assert (head.json_bytes, body) == (-1, b"%d" % counter)
    for counter in order:
        with pytest.raises(ReplayError):
            table.open("alice", asks[counter])


def test_a_counter_is_not_used_again_for_something_else(table: Sessions) -> None:
    held = begun(table)
    table.open("alice", held.ask(3, b"one"))
    with pytest.raises(ReplayError):
        table.open("alice", held.ask(3, b"another"))
    assert table.open("alice", held.ask(4, b"control"))[1] == b"control"


def test_what_does_not_open_uses_nothing_up(table: Sessions) -> None:
    """Else whoever sees a session's name could use its counters up."""
    held = begun(table)
    good = held.ask(0)
    far = held.ask(49)
    for envelope in (good[:-1] + bytes([good[-1] ^ 1]), far[:-1] + bytes([far[-1] ^ 1])):
        with pytest.raises(SealedRequestError):
            table.open("alice", envelope)
    assert table.open("alice", good)[1] == b"body"


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_the_window_is_as_good_as_remembering_everything(counters: list[int]) -> None:
    window, seen, top = Window(), set[int](), -1
    for counter in counters:
        expected = counter not in seen and counter > top - WINDOW
        try:
            window.check(counter)
        except ReplayError:
            assert not expected
            continue
        assert expected
        window.mark(counter)
        seen.add(counter)
        top = max(top, counter)


def test_the_edges_of_the_window() -> None:
    window = Window()
    for counter in (5, 5 + WINDOW, 5 + WINDOW - 1, 6):
        window.check(counter)
        window.mark(counter)
    for counter in (5, 4, 6, 5 + WINDOW - 1, 5 + WINDOW):
        with pytest.raises(ReplayError):
            window.check(counter)
    window.check(7)
    window.mark(2**63)
    assert window._seen == 1
    with pytest.raises(ReplayError, match="too late"):
        window.check(7)


def test_a_session_is_its_callers_alone(table: Sessions) -> None:
    held = begun(table, "alice")
    with pytest.raises(StaleSessionError):
        table.open("bob", held.ask(0))
    assert lives(table, held, 0, "alice")


def test_a_session_does_not_open_what_is_of_another(table: Sessions) -> None:
    mine, other = begun(table), begun(table)
    crossed = Held(mine.name, other.keys)
    with pytest.raises(SealedRequestError):
        table.open("alice", crossed.ask(0))
    assert lives(table, mine, 0)


def test_it_ends_by_time_by_count_and_with_its_key(table: Sessions, clock: Clock) -> None:
    by_time, by_key = begun(table), begun(table, ends=START + 40.9)
    assert not lives(table, by_time, LIMITS.session_requests)
    assert lives(table, by_time, LIMITS.session_requests - 1)
    clock.now = START + 39.9
    assert lives(table, by_key, 0)
    clock.now = START + 40
    assert not lives(table, by_key, 1)
    clock.now = START + 99.9
    assert lives(table, by_time, 0)
    clock.now = START + 100
    assert not lives(table, by_time, 1)
    assert len(table) == 0
    assert table._mine == {}


def test_a_key_that_has_ended_begins_none(table: Sessions) -> None:
    assert begin(table, ends=START + 0.5) is None
    assert begin(table, ends=0.0) is None


def test_a_caller_with_too_many_loses_the_one_that_it_does_not_use(table: Sessions) -> None:
    first, second, third = (begun(table) for _ in range(3))
    assert lives(table, first, 0)
    fourth = begun(table)
    assert [lives(table, one, 1) for one in (first, second, third, fourth)] == [True, False, True, True]
    assert len(table) == 3


def test_who_has_many_sessions_makes_room_for_who_has_few(table: Sessions, clock: Clock) -> None:
    """Mallory begins as many as she likes, and then others come until the table is full; Alice's stay."""
    mine = [begun(table) for _ in range(2)]
    for _ in range(50):
        assert begin(table, "mallory") is not None
    assert len(table) == 5
    assert begin(table, "carol") is not None
    assert begin(table, "dave") is not None, "in the place of one of Mallory's three"
    assert begin(table, "dave") is None, "full: the fullest have two, so there is nothing to share"
    assert begin(table, "erin") is not None, "who has none gets one of two"
    assert len(table) == 6
    clock.now = START + 100
    assert begin(table, "dave") is not None
    del mine


def test_addresses_cannot_take_a_place_from_keys(table: Sessions) -> None:
    """64 addresses fill the table; whoever has a key begins a session all the same, and keeps it. The control: another address begins one only as its share goes."""
    addresses = [f"ip:10.0.0.{k}" for k in range(6)]
    for address in addresses[:2]:
        for _ in range(3):
            assert begin(table, address) is not None
    assert len(table) == 6
    mine = [begun(table, "alice"), begun(table, "alice")]
    for address in addresses * 5:
        begin(table, address)
    assert len(table) == 6
    assert [lives(table, one, 0) for one in mine] == [True, True]
    assert {name for name in table._mine if name.startswith("ip:")} == set(addresses[:4]), "one each"
    bobs = [begun(table, "bob") for _ in range(3)]
    cecils = begun(table, "cecil")
    assert set(table._mine) == {"alice", "bob", "cecil"}
    assert begin(table, "ip:10.0.0.9") is None
    assert [lives(table, one, 1) for one in mine] == [True] * 2
    assert [lives(table, one, 0, "bob") for one in bobs] == [True] * 3
    assert lives(table, cecils, 0, "cecil")


def test_the_one_that_was_idle_for_longest_goes_of_the_fullest_share(table: Sessions) -> None:
    many = [begun(table, "mallory") for _ in range(3)]
    begun(table, "carol")
    two = [begun(table, "alice") for _ in range(2)]
    assert lives(table, many[0], 0, "mallory")
    assert begin(table, "dave") is not None
    assert [lives(table, one, 1, "mallory") for one in many] == [True, False, True]
    assert [lives(table, one, 1, "alice") for one in two] == [True, True]


def test_a_bad_offer_begins_none(table: Sessions) -> None:
    assert table.grant(X25519, "alice", "alice", b"first", b"s" * 32 + bytes(32), START + 100) is None
    assert len(table) == 0
