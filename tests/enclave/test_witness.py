"""What the enclave signs of a ledger, and what it tells of sealed requests."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from msgspec.structs import replace

from garrison.crypto.signing import AnswerSigner, verify_ed25519
from garrison.enclave.witness import EPSILON, LEAST_REQUESTS, SealedTally, Witness
from garrison.errors import MalformedRequestError, ProofError
from garrison.protocol.checkpoint import Place, next_head
from garrison.protocol.messages import Outcome
from garrison.protocol.statement import Statement, sign_batch, verify_answer

LEDGER, HEAD, OTHER = bytes(16), bytes(32), bytes(range(32))
OK, ODD, REFUSED = Outcome("ok", 3), Outcome("ok", 3, replaced=2), Outcome("guard.out_of_distribution", 3)


def tally(seed: int = 0) -> SealedTally:
    return SealedTally(["guard.out_of_distribution"], draw=random.Random(seed).random)


def witness() -> Witness:
    return Witness(AnswerSigner(), "a" * 64, "b" * 64, tally())


def test_a_checkpoint_is_signed_under_the_key_of_the_answers_and_any_change_shows() -> None:
    signer = AnswerSigner()
    signed = Witness(signer, "a" * 64, "b" * 64, tally(), clock=lambda: 12.9).sign(LEDGER, 7, HEAD)
    signed.verify()
    said = signed.checkpoint
    assert signed.key == signer.public_key
    assert (said.ledger, said.at, said.head, said.time) == (LEDGER.hex(), 7, HEAD.hex(), 12)
    for change in ({"at": 8}, {"head": OTHER.hex()}, {"ledger": "1" * 32}, {"time": 13}, {"model": ""}):
        with pytest.raises(ProofError):
            replace(signed, checkpoint=replace(said, **change)).verify()


BODIES = [bytes([k]) * 32 for k in range(4)]


def after(head: bytes, *bodies: bytes) -> bytes:
    for body in bodies:
        head = next_head(head, body)
    return head


def test_it_signs_one_history_alone() -> None:
    one = witness()
    one.sign(LEDGER, 7, HEAD)
    one.sign(LEDGER, 7, HEAD)
    end = after(HEAD, BODIES[0], BODIES[1])
    said = one.sign(LEDGER, 9, end, HEAD, BODIES[0] + BODIES[1]).checkpoint
    assert (said.since, said.before) == (7, Place(7, HEAD.hex()))
    for at, head in ((9, HEAD), (8, HEAD), (0, OTHER), (9, OTHER)):
        with pytest.raises(MalformedRequestError, match="signed already"):
            one.sign(LEDGER, at, head)
    one.sign(OTHER[:16], 0, HEAD)  # another ledger


def test_a_longer_history_must_go_on_from_what_it_signed() -> None:
    """Who rewrites a chain and makes it longer is refused; the control shows the way from the same place, or from an earlier one."""
    one = witness()
    signed = after(HEAD, BODIES[0])
    one.sign(LEDGER, 3, signed)
    fork = after(HEAD, BODIES[1], BODIES[2], BODIES[3])
    honest = after(signed, BODIES[2], BODIES[3])
    for head, start, bodies in (
        (fork, HEAD, BODIES[1:]),
        (fork, signed, BODIES[1:]),
        (fork, b"", []),
        (fork, fork, []),
        (honest, signed, []),
        (honest, signed, BODIES[2:3]),
        (honest, after(signed, BODIES[2]), BODIES[3:]),
        (honest, signed, [*BODIES[2:], b"x"]),
    ):
        with pytest.raises(MalformedRequestError, match="does not follow"):
            one.sign(LEDGER, 9, head, start, b"".join(bodies))
    with pytest.raises(MalformedRequestError, match="does not follow"):
        one.sign(LEDGER, 3, honest, signed, b"".join(BODIES[2:]))
    again = one.sign(LEDGER, 9, honest, HEAD, b"".join((BODIES[0], *BODIES[2:])))
    assert again.checkpoint.before == Place(3, signed.hex())
    last = one.sign(LEDGER, 10, after(honest, BODIES[0]), honest, BODIES[0])
    assert (last.checkpoint.since, last.checkpoint.before) == (3, Place(9, honest.hex()))


@pytest.mark.parametrize(
    ("ledger", "at", "head"), [(b"", 0, HEAD), (LEDGER, -1, HEAD), (LEDGER, 0, b"x"), (LEDGER, 2**63, HEAD)]
)
def test_what_is_no_ledger_is_not_signed(ledger: bytes, at: int, head: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        witness().sign(ledger, at, head)


def test_a_checkpoint_is_never_an_answers_signature_nor_the_other_way_round() -> None:
    """The host chooses all 32 bytes of the head; the label in front keeps both apart."""
    signer = AnswerSigner()
    statement = Statement("a" * 64, "b" * 64, "c" * 64, "d" * 64, 1, "n")
    (proof,) = sign_batch([statement], signer.sign)
    signed = Witness(signer, "a" * 64, "b" * 64, tally()).sign(LEDGER, 1, HEAD)
    message = signed.checkpoint.signed_bytes()
    verify_ed25519(signer.public_key, signed.signature, message)
    assert message.startswith(b"garrison ledger checkpoint v2\0")
    with pytest.raises(ProofError):
        verify_answer(
            proof.replace(proof[-64:], signed.signature), signer.public_key, request=b"", answer=b"", nonce="n"
        )


def test_a_tally_tells_nothing_of_few_requests() -> None:
    counts = tally()
    for _ in range(LEAST_REQUESTS - 1):
        counts.count(OK)
    assert counts.take() is None
    counts.count(OK)
    told = counts.take()
    assert told is not None
    assert told.requests == LEAST_REQUESTS
    assert set(told.counts) == {"ok", "ok, replaced", "guard.out_of_distribution", "other"}
    assert counts.take() is None  # and begins anew


@pytest.mark.parametrize(
    ("trials", "counts_seen", "slack"),
    [(1_200, (0, 1), 0.7), pytest.param(4_000, (-1, 0, 1, 2), 0.8, marks=pytest.mark.slow)],
)
def test_one_request_among_many_that_the_host_knows_moves_a_tally_by_no_more_than_the_noise_allows(
    trials: int, counts_seen: tuple[int, ...], slack: float
) -> None:
    """The host sends all but one itself. Without noise (the control) it reads that one off."""

    def told(odd: Outcome, seed: int, *, noise: bool = True) -> int:
        counts = tally(seed) if noise else SealedTally(["guard.out_of_distribution"], draw=lambda: 0.0)
        for _ in range(LEAST_REQUESTS - 1):
            counts.count(OK)
        counts.count(odd)
        found = counts.take()
        assert found is not None
        return found.counts["guard.out_of_distribution"]

    assert (told(OK, 0, noise=False), told(REFUSED, 0, noise=False)) == (0, 1)
    was_ok = Counter(told(OK, seed) for seed in range(trials))
    was_refused = Counter(told(REFUSED, seed + trials) for seed in range(trials))
    for value in counts_seen:
        ratio = was_refused[value] / was_ok[value]
        assert math.exp(-EPSILON) * slack < ratio < math.exp(EPSILON) / slack


def test_counts_are_right_but_for_the_noise_and_unknown_codes_are_others() -> None:
    counts = tally()
    for _ in range(1_000):
        counts.count(OK)
        counts.count(ODD)
        counts.count(REFUSED)
        counts.count(Outcome("something.new", 1))
    told = counts.take()
    assert told is not None
    assert all(abs(count - 1_000) < 40 for count in told.counts.values())
