"""Bad input, in one table: each row a request, the status and code it gets; the service answers the next one as if nothing had been."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from tests.models import PIXELS, images
from tests.serving import Bundles, Served, serve

from garrison.limits import Limits
from garrison.protocol.http_status import STATUS
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import Array

INFER = "/v2/models/mlp/infer"
SIZE = int(np.prod(PIXELS))
LIMITS = Limits(request_rows=100, request_body_bytes=200_000, request_json_bytes=100_000)


@pytest.fixture(scope="module")
def small(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(bundles, "mlp-1", "metered", state=tmp_path_factory.mktemp("state"), limits=LIMITS) as running:
        yield running


class Row(NamedTuple):
    """One bad request, what it gets, and what its message must say."""

    body: bytes
    status: int
    code: str
    says: str
    path: str = INFER
    method: str = "POST"
    headers: dict[str, str] = {}  # noqa: RUF012  a named tuple's default, never written to


def tensor(x: Array | None = None, **changes: Any) -> dict[str, Any]:
    values = images(1) if x is None else x
    found = {"name": "image", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
    return found | changes


def message(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def binary(x: Array, *, length: int | None = None, size: int | None = None, tail: bytes | None = None) -> Row:
    """A binary request, of which the parts can be made to lie."""
    data = x.tobytes()
    spec = {"name": "image", "datatype": "FP32", "shape": list(x.shape)}
    head = message(spec | {"parameters": {"binary_data_size": len(data) if size is None else size}})
    headers = {"inference-header-content-length": str(len(head) if length is None else length)}
    return Row(head + (data if tail is None else tail), 0, "", "", headers=headers)


def lies(row: Row, says: str) -> Row:
    return row._replace(status=400, code="request.malformed", says=says)


def at(index: int, value: float) -> Array:
    x = images(1)
    x.reshape(-1)[index] = value
    return x


def out_of_range(x: Array) -> Row:
    return binary(x)._replace(status=400, code="request.input", says="NaN, infinite or outside the range")


ONE = images(1)
TABLE: dict[str, Row] = {
    "empty body": Row(b"", 400, "request.malformed", "truncated"),
    "not JSON": Row(b"{inputs: 1}", 400, "request.malformed", "not an inference request"),
    "cut JSON": Row(message(tensor())[:-3], 400, "request.malformed", "truncated"),
    "not UTF-8": Row(b'{"inputs":[{"name":"\xff"}]}', 400, "request.malformed", "utf-8"),
    "deep JSON": Row(b'{"a":' + b"[" * 50_000 + b"]" * 50_000, 413, "request.too_large", "JSON part may have"),
    "deep JSON within the limit": Row(b'{"inputs":[],"a":' + b"[" * 40_000, 400, "request.malformed", "too deeply"),
    "no inputs": Row(message(), 400, "request.input", "also needs the input 'image'"),
    "unknown input": Row(message(tensor(name="picture")), 400, "request.input", "this model takes 'image'"),
    "input twice": Row(message(tensor(), tensor()), 400, "request.malformed", "given twice"),
    "wrong dtype": Row(message(tensor(datatype="FP64")), 400, "request.input", "expected datatype FP32, found 'FP64'"),
    "BYTES": Row(message(tensor(datatype="BYTES", data=["a"])), 400, "request.malformed", "Expected `float"),
    "wrong shape": Row(message(tensor(shape=[1, 8, 8])), 400, "request.input", "expected shape [rows, 1, 8, 8]"),
    "no rows": Row(message(tensor(shape=[0, *PIXELS], data=[])), 400, "request.input", "at least 1 row"),
    "too many rows": Row(message(tensor(shape=[101, *PIXELS])), 413, "request.too_large", "may have 100 rows"),
    "shape overflows": Row(message(tensor(shape=[2**63, 2**63, 8, 8])), 400, "request.input", "expected shape"),
    "too little data": Row(message(tensor(data=[0.5] * 63)), 400, "request.malformed", "64 values, found 63"),
    "too much data": Row(message(tensor(data=[0.5] * 65)), 400, "request.malformed", "64 values, found 65"),
    "text for numbers": Row(message(tensor(data=["0.5"] * 64)), 400, "request.malformed", "Expected `float"),
    "null for numbers": Row(message(tensor(data=[None] * 64)), 400, "request.malformed", "Expected `float"),
    "NaN in JSON": Row(message(tensor(at(0, np.nan))), 400, "request.malformed", "invalid character"),
    "infinity in JSON": Row(message(tensor(at(0, np.inf))), 400, "request.malformed", "invalid character"),
    "beyond FP32": Row(message(tensor(data=[1e300] * 64)), 400, "request.input", "outside the range of FP32"),
    "beyond FP64": Row(message(tensor()).replace(b"0.", b"1e999", 1), 400, "request.malformed", ""),
    "NaN": out_of_range(at(0, np.nan)),
    "NaN at the end": out_of_range(at(SIZE - 1, np.nan)),
    "infinity": out_of_range(at(7, np.inf)),
    "minus infinity": out_of_range(at(7, -np.inf)),
    "above the range": out_of_range(at(7, 1.0001)),
    "below the range": out_of_range(at(7, -0.0001)),
    "one bad row of many": out_of_range(np.concatenate([images(5), at(3, np.nan), images(5)])),
    "unknown output": Row(
        message(tensor(), outputs=[{"name": "logits"}]), 400, "request.input", "this model gives 'probabilities'"
    ),
    "output twice": Row(
        message(tensor(), outputs=[{"name": "probabilities"}] * 2), 400, "request.malformed", "asked for twice"
    ),
    "long id": Row(message(tensor(), id="i" * 300), 413, "request.too_large", "id may have 256 bytes"),
    "binary size too large": lies(binary(ONE, size=260), "binary_data_size is 260"),
    "binary size too small": lies(binary(ONE, size=252), "binary_data_size is 252"),
    "negative binary size": lies(binary(ONE, size=-256), "binary_data_size is -256"),
    "tail too short": lies(binary(ONE, tail=bytes(255)), "only 255 bytes"),
    "tail too long": lies(binary(ONE, tail=bytes(257)), "add up to 256"),
    "length beyond the body": lies(binary(ONE, length=10_000), "must lie between 0 and"),
    "length cuts the JSON": lies(binary(ONE, length=20), "truncated"),
    "length zero": lies(binary(ONE, length=0), "truncated"),
    "length negative": lies(
        binary(ONE)._replace(headers={"inference-header-content-length": "-5"}), "must be a number of bytes"
    ),
    "length no number": lies(
        binary(ONE)._replace(headers={"inference-header-content-length": "ten"}), "must be a number of bytes"
    ),
    "length missing": lies(binary(ONE)._replace(headers={}), "trailing characters"),
    "both forms": Row(
        message(tensor(parameters={"binary_data_size": 256})), 400, "request.malformed", "both are given"
    ),
    "compressed": Row(
        gzip.compress(message(tensor())), 400, "request.malformed", "compressed", headers={"content-encoding": "gzip"}
    ),
    "huge": Row(bytes(200_001), 413, "request.too_large", "a body may have 200000 bytes"),
    "JSON too long": Row(
        message(tensor(images(80), shape=[80, *PIXELS])), 413, "request.too_large", "JSON part may have 100000 bytes"
    ),
    "unknown model": Row(
        message(tensor()), 404, "request.not_found", "unknown model 'nope'", path="/v2/models/nope/infer"
    ),
    "unknown version": Row(
        message(tensor()), 404, "request.not_found", "unknown version '9'", path="/v2/models/mlp/versions/9/infer"
    ),
    "version not a number": Row(b"", 404, "request.not_found", "version '01'", path="/v2/models/mlp/versions/01/infer"),
    "unknown path": Row(b"", 404, "request.not_found", "nothing is here", path="/admin"),
    "path that climbs": Row(b"", 404, "request.not_found", "", path="/v2/models/%2e%2e/%2e%2e/etc/passwd"),
    "long path": Row(b"", 404, "request.not_found", "nothing is here", path="/" + "a" * 5000),
    "wrong method": Row(b"", 405, "request.method", "expected POST, found GET", method="GET"),
    "strange method": Row(b"", 405, "request.method", "found BREW", method="BREW"),
    "wrong method on a page": Row(b"", 405, "request.method", "expected GET, HEAD", method="DELETE", path="/v2"),
    "nonce too long": Row(
        message(tensor()), 413, "request.too_large", "may have 256 bytes", headers={"garrison-nonce": "n" * 257}
    ),
    "nonce not printable": Row(
        message(tensor()), 400, "request.malformed", "printable ASCII", headers={"garrison-nonce": "a\tb"}
    ),
    "more than the budget": Row(
        binary(images(99))._replace(path="x").body,
        429,
        "request.budget_exhausted",
        "budget of 100 rows (ever)",
        path="/v2/models/metered/infer",
        headers=binary(images(99)).headers,
    ),
}


@pytest.fixture(scope="module")
def expected(small: Served) -> Array:
    """What the service answers before it has seen anything bad."""
    return read(small.infer(images(3)))


def read(response: httpx.Response) -> Array:
    assert response.status_code == 200, response.text
    answer = decode_response(response.content, int(response.headers["inference-header-content-length"]))
    return answer.outputs["probabilities"]


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_bad_input_is_refused_and_harms_nobody(small: Served, expected: Array, row: Row) -> None:
    if row.code == "request.budget_exhausted":
        small.infer(images(2), row.path)
    response = httpx.request(row.method, small.url + row.path, content=row.body, headers=row.headers)
    assert response.status_code == row.status, response.text
    found = response.json()
    assert found.keys() == {"error", "code"}
    assert found["code"] == row.code
    assert row.says in found["error"]
    np.testing.assert_array_equal(read(small.infer(images(3))), expected)


def test_every_code_of_the_table_of_errors_is_met_somewhere() -> None:
    met = {row.code for row in TABLE.values()}
    elsewhere = {"request.unauthenticated", "request.slow", "refused", "unavailable", "internal"}
    elsewhere |= {"request.forbidden", "request.too_fast"}  # test_tokens.py, test_quotas.py
    elsewhere |= {"upstream", "answer.invalid"}  # tests/upstream, tests/enclave/test_outputs.py
    elsewhere |= {
        "request.work_required",
        "request.throttled",
    }  # test_distinct_budget.py, tests/guard/defenses/test_watch.py
    elsewhere |= {
        "request.sealed",
        "request.stale_key",
        "request.stale_session",
        "request.replayed",
        "request.sealing_required",
    }  # test_sealed.py
    assert met | elsewhere == set(STATUS)
    assert all(STATUS[row.code] == row.status for row in TABLE.values())


def test_a_malformed_request_is_not_charged(small: Served) -> None:
    book = small.assembly.book
    assert book is not None
    before = book.remaining("metered", "ip:127.0.0.1", "ever", 100)
    for row in TABLE.values():
        if row.path == INFER:
            path = "/v2/models/metered/infer"
            httpx.request(row.method, small.url + path, content=row.body, headers=row.headers)
    assert book.remaining("metered", "ip:127.0.0.1", "ever", 100) == before


def test_one_bad_request_in_a_batch_harms_no_other(small: Served) -> None:
    """Good and bad requests at the same moment: each good one gets its own answer, each bad one its own error."""
    good = [images(n, seed=n) for n in range(1, 9)]
    alone = [read(small.infer(x)) for x in good]
    bad = [row for row in TABLE.values() if row.path == INFER and row.status == 400]

    async def all_at_once() -> tuple[list[httpx.Response], list[httpx.Response]]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=small.url, limits=limits, timeout=60) as client:

            def ask(x: Array) -> Any:
                body, length = encode_request({"image": x})
                return client.post(INFER, content=body, headers={"inference-header-content-length": str(length)})

            def spoil(row: Row) -> Any:
                return client.request(row.method, INFER, content=row.body, headers=row.headers)

            mixed = await asyncio.gather(*map(ask, good), *map(spoil, bad), *map(ask, good))
            return mixed[: len(good)] + mixed[-len(good) :], mixed[len(good) : -len(good)]

    answers, errors = asyncio.run(all_at_once())
    for response, values in zip(answers, alone * 2, strict=True):
        np.testing.assert_allclose(read(response), values, atol=1e-6)
    assert [(e.status_code, e.json()["code"]) for e in errors] == [(row.status, row.code) for row in bad]
