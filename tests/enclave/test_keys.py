"""Keys by epoch: rotation, grace, replays, and the full replay set."""

from __future__ import annotations

import itertools

import pytest

from garrison.attest.evidence import KeySet
from garrison.crypto.hpke import AVAILABLE, PREFERRED
from garrison.enclave.keys import _MOST_EPOCHS, KeyRing
from garrison.errors import ReplayError, SealedRequestError, StaleKeyError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.sealed import HEADER_BYTES, RequestHead, read_request, seal_request

LIMITS = Limits(key_offered_seconds=100, key_grace_seconds=50, key_least_seconds=10, replay_entries=4)
START = 1_000_000.0
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
def ring(clock: Clock) -> KeyRing:
    return KeyRing(bytes(32), limits=LIMITS, clock=clock)


def envelope(keys: KeySet, body: bytes = b"body", epoch: int | None = None) -> bytes:
    head = RequestHead("", -1, str(next(count)), bytes(32), int(START))
    return seal_request(keys.suite, keys.hpke, keys.epoch if epoch is None else epoch, head, body)


@pytest.mark.parametrize("suite", AVAILABLE)
def test_what_is_sealed_to_the_offered_key_opens_once(suite: str, clock: Clock) -> None:
    ring = KeyRing(b"s" * 32, suite=suite, limits=LIMITS, clock=clock)
    keys = ring.offered()
    assert (keys.suite, keys.signing, keys.epoch, keys.expires) == (suite, b"s" * 32, 1, int(START) + 150)
    sealed = envelope(keys)
    assert read_request(ring.open(sealed))[1] == b"body"
    with pytest.raises(ReplayError):
        ring.open(sealed)
    assert read_request(ring.open(envelope(keys)))[1] == b"body"


@pytest.mark.parametrize("suite", AVAILABLE)
def test_no_byte_of_an_envelope_that_was_opened_makes_it_another(suite: str, clock: Clock) -> None:
    """The replay set remembers the encapsulated key alone; what is changed there does not open."""
    ring = KeyRing(bytes(32), suite=suite, limits=LIMITS, clock=clock)
    sealed = envelope(ring.offered())
    ring.open(sealed)
    for place in range(HEADER_BYTES, len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 0x80  # the top bit of an X25519 key counts for nothing in the exchange itself
        with pytest.raises((ReplayError, SealedRequestError)):
            ring.open(bytes(changed))
    before = envelope(ring.offered())
    with pytest.raises(SealedRequestError):  # one that was not opened yet is no replay
        ring.open(before[:-1] + bytes([before[-1] ^ 1]))
    ring.open(before)


def test_the_preferred_suite_is_taken(ring: KeyRing) -> None:
    assert ring.offered().suite == PREFERRED


def test_rotation_and_grace(ring: KeyRing, clock: Clock) -> None:
    first = ring.offered()
    replayed = envelope(first)
    ring.open(replayed)
    clock.now = START + 99.9
    assert ring.offered() == first
    clock.now = START + 100
    second = ring.offered()
    assert (second.epoch, second.signing) == (2, first.signing)
    assert second.hpke != first.hpke
    clock.now = START + 149.9
    ring.open(envelope(first))
    ring.open(envelope(second))
    with pytest.raises(ReplayError):  # remembered over the rotation
        ring.open(replayed)
    clock.now = START + 150
    for late in (envelope(first), replayed):
        with pytest.raises(StaleKeyError):
            ring.open(late)
    ring.open(envelope(second))


def test_an_ended_key_is_dropped(ring: KeyRing, clock: Clock) -> None:
    for _ in range(5):
        clock.now += 1000
        ring.offered()
    assert len(ring._epochs) == 1


def test_few_keys_are_alive_whatever_the_clock_does(clock: Clock) -> None:
    limits = Limits(key_offered_seconds=1, key_grace_seconds=1e6)
    ring = KeyRing(bytes(32), limits=limits, clock=clock)
    numbers = []
    for step in range(30):
        clock.now += 5 if step % 3 else -7
        numbers.append(ring.offered().epoch)
        assert len(ring._epochs) <= _MOST_EPOCHS
    assert numbers == sorted(set(numbers))


def test_another_epoch_another_enclave_and_no_envelope(ring: KeyRing, clock: Clock) -> None:
    other = KeyRing(bytes(32), limits=LIMITS, clock=clock).offered()
    with pytest.raises(StaleKeyError, match="attest again"):
        ring.open(envelope(other))
    with pytest.raises(StaleKeyError):
        ring.open(envelope(ring.offered(), epoch=2))
    for junk in (b"", b"GSR2", bytes(2000)):
        with pytest.raises(SealedRequestError):
            ring.open(junk)


def test_garbage_does_not_fill_the_set(ring: KeyRing) -> None:
    keys = ring.offered()
    good = envelope(keys)
    for at in range(40, 60):
        with pytest.raises(SealedRequestError):
            ring.open(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    assert read_request(ring.open(good))[1] == b"body"


def test_a_full_set_closes_the_key_and_makes_another(ring: KeyRing, clock: Clock) -> None:
    keys = ring.offered()
    used = [envelope(keys) for _ in range(LIMITS.replay_entries)]
    for one in used:
        ring.open(one)
    waiting = envelope(keys)
    with pytest.raises(UnavailableError):  # too young for another
        ring.open(waiting)
    assert ring.offered() == keys
    clock.now += LIMITS.key_least_seconds
    with pytest.raises(StaleKeyError):
        ring.open(waiting)
    fresh = ring.offered()
    assert fresh.epoch == 2
    ring.open(envelope(fresh))
    for one in (*used, waiting):  # the full key opens nothing more, so nothing can come twice
        with pytest.raises(StaleKeyError):
            ring.open(one)


def test_evidence_asked_for_while_the_set_is_full_offers_another_key(ring: KeyRing, clock: Clock) -> None:
    keys = ring.offered()
    for _ in range(LIMITS.replay_entries):
        ring.open(envelope(keys))
    clock.now += LIMITS.key_least_seconds
    assert ring.offered().epoch == 2


def test_an_older_key_that_is_full_is_stale(ring: KeyRing, clock: Clock) -> None:
    first = ring.offered()
    clock.now += 100
    second = ring.offered()
    for _ in range(LIMITS.replay_entries):
        ring.open(envelope(first))
    with pytest.raises(StaleKeyError):
        ring.open(envelope(first))
    assert ring.offered() == second
    ring.open(envelope(second))
