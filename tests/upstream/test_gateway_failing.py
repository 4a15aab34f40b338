"""A gateway before a server that misbehaves, is slow, or is not there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from tests.models import BOUNDS, RELEASE, SCORE, Sealed, images, misinform
from tests.serving import Served, budget
from tests.stalls import again_after_a_stall, wait_until
from tests.upstream.guards import entry_of, gateway, infer, mlp_triton, seal_guard
from tests.upstream.triton import HEADER, Triton, serving

from garrison.errors import UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.types import Array

pytestmark = pytest.mark.usefixtures("honest")

Answer = tuple[int, dict[str, str], bytes]


def test_the_other_server_dislikes_one_request_among_many(served: Served, triton: Triton) -> None:
    """Its 400 hits that request alone, and is not passed on."""
    plain = triton.run

    def picky(x: Array) -> Array:
        if (x > 0.9999).all(axis=(1, 2, 3)).any():
            raise ValueError("secret: the model chokes on bright images")
        return plain(x)

    triton.run = picky
    try:
        found = bright_among_others(served.url)
    finally:
        triton.run = plain
    assert [response.status_code for response in found] == [502 if k == 3 else 200 for k in range(16)]
    assert "secret" not in found[3].text


def bright_among_others(url: str) -> list[httpx.Response]:
    bright: Array = np.ones((1, 1, 8, 8), np.float32)
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda k: infer(url, bright if k == 3 else images(1, seed=k)), range(16)))


def test_a_request_that_ends_the_other_server_s_connections(served: Served, triton: Triton) -> None:
    bright = np.ones(64, np.float32).tobytes()
    triton.drop = lambda body: bright in body
    try:
        found = bright_among_others(served.url)
    finally:
        triton.drop = None
    assert [response.status_code for response in found] == [502 if k == 3 else 200 for k in range(16)]


def rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[int, dict[str, str], bytes], Answer]:
    """An answer whose JSON part was changed."""

    def run(status: int, headers: dict[str, str], body: bytes) -> Answer:
        length = int(headers[HEADER])
        message = json.loads(body[:length])
        change(message)
        head = json.dumps(message).encode()
        return status, headers | {HEADER: str(len(head))}, head + body[length:]

    return run


def values(made: Callable[[Array], Array]) -> Callable[[int, dict[str, str], bytes], Answer]:
    """An answer whose numbers were changed."""

    def run(status: int, headers: dict[str, str], body: bytes) -> Answer:
        length = int(headers[HEADER])
        return status, headers, body[:length] + made(np.frombuffer(body[length:], np.float32).copy()).tobytes()

    return run


def entry(x: Array, place: int, value: float) -> Array:
    x[place] = value
    return x


def plain(status: int, body: bytes, **headers: str) -> Callable[[int, dict[str, str], bytes], Answer]:
    return lambda *_: (status, headers, body)


LIES: dict[str, tuple[Callable[[int, dict[str, str], bytes], Answer], int]] = {
    "a shape": (rewritten(lambda m: m["outputs"][0].update(shape=[5, 1])), 502),
    "fewer classes": (rewritten(lambda m: m["outputs"][0].update(shape=[1, 4])), 502),
    "a datatype": (rewritten(lambda m: m["outputs"][0].update(datatype="INT32")), 502),
    "an unknown datatype": (rewritten(lambda m: m["outputs"][0].update(datatype="BYTES")), 502),
    "no output": (rewritten(lambda m: m.update(outputs=[])), 502),
    "another output": (rewritten(lambda m: m["outputs"][0].update(name="secret")), 502),
    "another model": (rewritten(lambda m: m.update(model_name="secret")), 502),
    "another request's id": (rewritten(lambda m: m.update(id="garrison-0")), 502),
    "no id": (rewritten(lambda m: m.pop("id")), 502),
    "another id in the words of an honest answer": (
        lambda status, headers, body: (status, headers, body.replace(b"garrison-", b"garrison_")),
        502,
    ),
    "a negative size": (rewritten(lambda m: m["outputs"][0].update(shape=[-1, -5])), 502),
    "NaN": (values(lambda x: entry(x, 1, float("nan"))), 502),
    "infinity": (values(lambda x: entry(x, 1, float("inf"))), 502),
    "a negative probability": (values(lambda x: entry(x, 1, -0.5)), 502),
    "no distribution": (values(lambda x: x * 2), 502),
    "too few bytes": (values(lambda x: x[:-1]), 502),
    "too many bytes": (values(lambda x: np.concatenate([x, x])), 502),
    "a length of the JSON part that lies": (lambda s, h, b: (s, h | {HEADER: "99999"}, b), 502),
    "a length that is none": (lambda s, h, b: (s, h | {HEADER: "secret"}, b), 502),
    "not JSON": (plain(200, b"<html>secret</html>"), 502),
    "a page of an error": (plain(500, b"secret: traceback"), 502),
    "bad request": (plain(400, b'{"error":"secret"}'), 502),
    "not allowed": (plain(401, b'{"error":"secret"}'), 502),
    "gone": (plain(404, b'{"error":"secret"}'), 502),
    "elsewhere": (plain(302, b"", Location="http://secret/"), 502),
    "packed": (plain(200, b"\x1f\x8bsecret", **{"Content-Encoding": "gzip"}), 502),
    "busy": (plain(503, b'{"error":"secret"}'), 503),
    "too many requests": (plain(429, b'{"error":"secret"}'), 503),
    "a gateway of its own": (plain(502, b"secret"), 503),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_lies_is_used_for_nothing(served: Served, triton: Triton, lie: str) -> None:
    triton.change, status = LIES[lie]
    response = infer(served.url, images(1))
    assert response.status_code == status
    assert response.json()["code"] == {502: "upstream", 503: "unavailable"}[status]
    assert ("retry-after" in response.headers) == (status == 503)
    assert "secret" not in response.text
    assert "secret" not in str(response.headers)
    triton.change = None
    assert infer(served.url, images(1)).status_code == 200, "control: an honest answer is used"


def test_an_answer_that_is_too_long(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    triton.change = plain(200, b"a" * 200_000)
    with gateway(sealed, triton.url, tmp_path, Limits(upstream_bytes=100_000)) as served:
        assert infer(served.url, images(1)).status_code == 502


@again_after_a_stall
def test_a_server_that_does_not_answer(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    """The deadline holds, and the gateway goes on answering meanwhile."""

    asked, done = threading.Event(), threading.Event()

    def slow(*answer: Any) -> Any:
        asked.set()
        done.wait(30)
        return answer

    with gateway(sealed, triton.url, tmp_path, Limits(upstream_seconds=2.0)) as served:
        triton.change = slow
        try:
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(infer, served.url, images(1))
                assert asked.wait(10)
                assert httpx.get(f"{served.url}/v2/health/live").status_code == 200
                assert not waiting.done(), "the loop waited for the other server no longer than a moment"
                response = waiting.result()
        finally:
            done.set()
            triton.change = None
        assert response.status_code == 503
        assert "retry-after" in response.headers
        wait_until(lambda: infer(served.url, images(1)).status_code == 200)


def test_an_answer_that_takes_longer_than_a_moment_is_not_asked_for_twice(
    sealed: Sealed, triton: Triton, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def late(*answer: Any) -> Any:
        asked.append(answer)
        time.sleep(0.1)  # twenty times as long as the loop waits
        return answer

    x = images(3)
    with gateway(sealed, triton.url, tmp_path) as served:
        quick = infer(served.url, x)
        triton.change = late
        slow = infer(served.url, x)
        triton.change = None
        assert len(asked) == 1
        assert (slow.status_code, slow.content) == (200, quick.content)
        assert infer(served.url, images(2)).status_code == 200, "the next question gets its own answer"


def test_down_at_start_up_later_and_gone_again(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    port = urlsplit(triton.url).port or 0
    with serving(mlp_triton()) as other:
        free = urlsplit(other.url).port or 0
    assert free != port
    url = f"http://127.0.0.1:{free}"
    with gateway(sealed, url, tmp_path) as served:
        assert httpx.get(f"{served.url}/v2/health/ready").status_code == 503
        response = infer(served.url, images(1))
        assert (response.status_code, "retry-after" in response.headers) == (503, True)
        with serving(mlp_triton(), free):
            wait_until(lambda: httpx.get(f"{served.url}/v2/health/ready").status_code == 200)
            assert infer(served.url, images(1)).status_code == 200
        with serving(mlp_triton(input="other"), free):
            changed = infer(served.url, images(1))
            assert changed.status_code in (502, 503), "another model at the same address is not answered for"
            assert infer(served.url, images(1)).status_code == 502


def test_budgets_count_what_was_answered_alone(triton: Triton, tmp_path: Path) -> None:
    chain = (BOUNDS, budget(5), SCORE, misinform(0.6), RELEASE)
    sealed = seal_guard(tmp_path / "bundle", entry_of(triton.url), chain)
    with gateway(sealed, triton.url, tmp_path / "state") as served:
        triton.change = plain(500, b"")
        assert [infer(served.url, images(2)).status_code for _ in range(4)] == [502] * 4
        triton.change = None
        assert [infer(served.url, images(2)).status_code for _ in range(3)] == [200, 200, 429]


def test_a_stopped_scorer_asks_no_more(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    with gateway(sealed, triton.url, tmp_path) as served:
        (enclave,) = served.assembly.enclaves
    body, json_bytes = encode_request({"image": images(1)})
    with pytest.raises(UnavailableError):
        enclave.call([Ask("c", -1, body, json_bytes)])
