"""The fuzzer itself: the same seed asks the same, its framing holds, and it sees what must not be."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from benchmarks.fuzzing.__main__ import Found, fuzz, page, traces
from benchmarks.fuzzing.mutations import Mutator, Request, RequestMutator
from benchmarks.fuzzing.talk import Seen

CORPUS = [
    Request(
        b"POST", b"/v2/models/mlp/infer", ((b"Content-Type", b"application/json"),), b'{"inputs":[{"shape":[1,8]}]}'
    ),
    Request(b"GET", b"/v2/health/ready", (), b""),
]


LATER = {"error": "8 are waiting already; try again", "code": "unavailable"}
AGAIN = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
EVIDENCE = b"GET /.well-known/garrison/attestation?nonce=x HTTP/1.1\r\nHost: x\r\n\r\n"
IN_A_HURRY = b"POST /v2/models/mlp/infer HTTP/1.1\r\nRequest-Timeout: 0.1\r\n\r\n"


def test_the_same_seed_gives_the_same_requests_and_another_others() -> None:
    def drawn(seed: int) -> list[bytes]:
        mutator = RequestMutator(random.Random(seed), CORPUS)
        return [mutator.next().wire() for _ in range(300)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 200


@pytest.mark.parametrize("data", [b"", b"a", bytes(200), b'{"a": 12}'])
def test_what_comes_out_is_never_what_came_in(data: bytes) -> None:
    mutator = Mutator(random.Random(0), [b"other"])
    assert all(mutator.mutate(data) != data for _ in range(500))


def test_where_a_request_ends_can_always_be_told() -> None:
    mutator = RequestMutator(random.Random(3), CORPUS)
    for _ in range(2_000):
        request = mutator.next()
        head, _, body = request.wire().partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        assert len(first.split(b" ")) == 3
        assert len(lines) == 2 + len(request.headers)
        assert lines[-1] == b"Content-Length: %d" % len(body)
        assert not any(line.lower().startswith((b"transfer-encoding", b"connection")) for line in lines)


@pytest.mark.parametrize(
    ("status", "body", "head", "request_", "is_bad"),
    [
        (400, {"error": "no", "code": "request.malformed"}, b"", b"", False),
        (404, {"error": "no", "code": "request.not_found"}, b"", b"", False),
        (400, {"error": "no", "code": "request.not_found"}, b"", b"", True),
        (400, {"error": "no", "code": "odd"}, b"", b"", True),
        (400, {"error": "no", "code": "request.malformed", "trace": "x"}, b"", b"", True),
        (500, {"error": "no", "code": "internal"}, AGAIN, EVIDENCE, True),
        (500, None, b"", b"", True),
        (503, LATER, AGAIN, b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\n\r\n", True),
        (503, LATER, AGAIN, IN_A_HURRY, False),
        (503, LATER, b"HTTP/1.1 503\r\n", IN_A_HURRY, True),
        (503, LATER, AGAIN, EVIDENCE, False),
        (503, LATER, b"HTTP/1.1 503\r\n", EVIDENCE, True),
        (503, LATER | {"code": "internal"}, AGAIN, EVIDENCE, True),
        (503, None, AGAIN, EVIDENCE, True),
        (503, LATER, AGAIN, b"GET /v2 HTTP/1.1\r\nX: " + EVIDENCE, True),
        (400, None, b"", b"", False),
    ],
)
def test_an_error_in_another_form_than_the_documented_one_is_seen(
    status: int, body: object, head: bytes, request_: bytes, is_bad: bool
) -> None:
    seen = Seen()
    seen.note(status, head, b"" if body is None else json.dumps(body).encode(), request_)
    assert bool(seen.bad) == is_bad
    assert seen.sent == 1


def test_each_figure_that_is_not_met_is_named() -> None:
    good = Found(0, whole=200.0, memory=[100.0, 109.0, 109.0, 110.0], enclaves={7}, ledger=True)
    good.seen["HTTP, wire"].good = 5
    assert all(met for _, _, met in good.figures().values())
    assert "**no**" not in page(good, "x")
    for change in ("wrong", "late"):
        bad = Found(0, whole=200.0, memory=[100.0, 109.0, 109.0, 110.0], enclaves={7}, ledger=True)
        bad.seen["HTTP, wire"].good = 5
        setattr(bad.seen["gRPC, calls"], change, 1)
        assert "**no**" in page(bad, "x")
    for found in (
        Found(0, whole=200.0, memory=[100.0, 111.0, 111.0, 111.0], enclaves={7}, ledger=True),
        Found(0, whole=200.0, memory=[100.0], enclaves={7, 8}, ledger=True),
        Found(0, whole=200.0, memory=[100.0], enclaves={7}),
        Found(0, whole=200.0, memory=[100.0], enclaves={7}, ledger=True, traces=["x"]),
    ):
        found.seen["HTTP, wire"].good = 5
        assert sum(not met for _, _, met in found.figures().values()) == 1
    assert traces("fine\nTraceback (most recent call last):\nValueError: x") == [
        " (most recent call last):\nValueError: x"
    ]


@pytest.mark.slow
def test_twenty_thousand_malformed_requests_harm_nothing(tmp_path: Path) -> None:
    """Over HTTP and gRPC; `make bench ONLY=fuzzing` sends a million."""
    found = fuzz(20_000, seed=20, folder=tmp_path)
    figures = found.figures()
    for name in [name for name in figures if name.startswith("memory")]:
        del figures[name]  # a longer run's; this one is warming up
    assert all(met for _, _, met in figures.values()), (figures, found.traces, [s.bad for s in found.seen.values()])
    assert found.growth < 0.25
    assert all(seen.sent for seen in found.seen.values())
