"""The guard in a user's own app: what leaves, and what does not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.asgi.apps import Caller, expected, own_model, predict, raw, starlette
from tests.models import BOUNDS, CLASSES, LABELS, RELEASE, SCORE, images, seal_mlp
from tests.serving import Bundles

from garrison.asgi import Question
from garrison.asgi.guard import AppGuard
from garrison.limits import Limits
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import DefenseSpec

Settings = Callable[..., dict[str, Any]]
JSON = {"content-type": "application/json"}
GOOD = [0.2] * CLASSES


def test_answers_go_through_the_guard(bundles: Bundles, settings: Settings) -> None:
    x = images(40)
    found = Caller(starlette(**settings())).ask(json={"x": x.tolist()})
    assert found.status_code == 200
    answer = found.json()
    assert set(answer) == {"probabilities"}, "fields that were not named are dropped"
    guarded = np.array(answer["probabilities"])
    assert np.allclose(guarded, expected(bundles, x), atol=1e-5)
    assert not np.allclose(guarded, own_model(x), atol=1e-2), "control: some rows are misinformed"


@pytest.mark.parametrize("shape", ["nested", "flat", "one", "one flat"])
def test_rows_may_be_nested_or_flat_many_or_one(bundles: Bundles, settings: Settings, shape: str) -> None:
    x = images(1 if shape.startswith("one") else 3, seed=4)
    given = {"nested": x, "flat": x.reshape(3, -1) if len(x) == 3 else x, "one": x[0], "one flat": x[0].ravel()}[shape]
    found = Caller(starlette(**settings(), label="label")).ask(json={"x": given.tolist()})
    answer = found.json()
    values = np.array(answer["probabilities"])
    assert values.shape == ((CLASSES,) if shape.startswith("one") else (3, CLASSES))
    assert np.allclose(values, expected(bundles, x).reshape(values.shape), atol=1e-5)
    classes = values.reshape(-1, CLASSES).argmax(axis=1)
    labels = [LABELS[k] for k in classes]
    assert answer["label"] == (labels[0] if shape.startswith("one") else labels), (
        "of the guarded answer, not the endpoint's"
    )


def test_fields_are_kept_on_request_alone(settings: Settings) -> None:
    app = starlette(**settings(), keep=["note"])
    answer = Caller(app).ask(json={"x": images(1).tolist(), "note": "mine"}).json()
    assert answer["note"] == "mine"
    assert "secret" not in answer


def test_release_policy(settings: Settings) -> None:
    answer = Caller(starlette(**settings("plain"), label="label")).ask(json={"x": images(2).tolist()}).json()
    assert set(answer) == {"classes", "label"}
    assert answer["label"] == [LABELS[row[0]] for row in answer["classes"]]


def test_uncertain_rows_are_marked(settings: Settings) -> None:
    x = images(64)
    unsure = own_model(x).max(axis=1) <= 0.6
    assert 0 < unsure.sum() < 64
    caller = Caller(starlette(**settings("reserved"), label="label"))
    answer = caller.ask(json={"x": x.tolist()}).json()
    assert answer["uncertain"] == unsure.tolist()
    assert [label is None for label in answer["label"]] == unsure.tolist()
    assert "uncertain" not in caller.ask(json={"x": x[~unsure].tolist()}).json()
    assert caller.ask(json={"x": x[unsure][0].tolist()}).json()["uncertain"] is True


def test_what_the_guard_refuses_is_told_as_no_more_than_that(settings: Settings, tmp_path: Path) -> None:
    refuse = DefenseSpec(name="reject-option", parameters={"tau": 0.6, "action": "refuse"})
    sealed = seal_mlp(tmp_path / "refusing", chain=(BOUNDS, SCORE, refuse, RELEASE))
    (tmp_path / "owner.pub").write_bytes(sealed.owner.public.pem)
    x = images(64)
    sure = own_model(x).max(axis=1) > 0.6
    caller = Caller(starlette(**settings() | {"bundle": sealed.path, "trust": tmp_path / "owner.pub"}))
    found = caller.ask(json={"x": x[~sure][:1].tolist()})
    assert found.status_code == 403
    assert found.json() == {"error": "the service refuses this request", "code": "refused"}
    assert caller.ask(json={"x": x[sure].tolist()}).status_code == 200


def test_a_guard_that_fails_answers_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("raw")

    body = {"x": images(1).tolist()}
    for phase in ("ask", "answer"):
        monkeypatch.setattr(AppGuard, phase, broken)
        found = Caller(starlette(**settings())).ask(json=body)
        assert found.status_code == 500
        assert found.json()["code"] == "internal"
        monkeypatch.undo()
    assert Caller(starlette(**settings())).ask(json=body).status_code == 200


def test_bad_input_does_not_reach_the_endpoint(settings: Settings) -> None:
    asked = []

    async def endpoint(request: Request) -> Response:
        asked.append(request)
        return await predict(request)

    x = images(1)[0].tolist()
    high = np.full((1, 8, 8), 7.0).tolist()
    caller = Caller(starlette(endpoint, **settings()))
    for body in (
        b"", b"[]", b"nonsense", b'{"x": NaN}', b'{"y": 1}', b'{"x": []}', b'{"x": [[]]}', b'{"x": "1"}', b'{"x": null}',
        json.dumps({"x": high}).encode(), json.dumps({"x": [[["1"] * 8] * 8]}).encode(),
        json.dumps({"x": [[[True] * 8] * 8]}).encode(), json.dumps({"x": [x[0], x[0][:-1]]}).encode(),
        b'{"x": [' + b"[" * 5000 + b"]" * 5000 + b"]}", b'{"x": 1e999}', b'{"x": [' + b"0.5," * 63 + b"1e39]}",
        b"\xff\xfe" + json.dumps({"x": x}).encode("utf-16-le"), b'{"x": [0.5, null]}',
    ):  # fmt: skip
        found = caller.ask(content=body, headers=JSON)
        assert found.status_code == 400, body[:60]
        assert found.json()["code"].startswith("request.")
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/json; charset=utf-16"}):
        assert caller.ask(content=json.dumps({"x": x}).encode(), headers=headers).status_code == 400
    packed = gzip.compress(json.dumps({"x": x}).encode())
    assert caller.ask(content=packed, headers=JSON | {"content-encoding": "gzip"}).status_code == 400
    assert not asked
    assert caller.ask(json={"x": x}).status_code == 200
    assert len(asked) == 1, "control"


def test_guard_and_endpoint_read_the_same(settings: Settings) -> None:
    """A field that stands twice, and a text in another encoding, are no way to show the guard one input and the model another."""
    seen = []

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        seen.append((body, request.scope["garrison"]))
        return await predict(request)

    inside, outside = images(1)[0].tolist(), np.full((1, 8, 8), 9.0).tolist()
    caller = Caller(starlette(endpoint, **settings()))
    both = b'{"x": %s, "x": %s}' % (json.dumps(outside).encode(), json.dumps(inside).encode())
    assert caller.ask(content=both, headers=JSON).status_code == 200
    body, question = seen[0]
    escaped = both.replace(b'"x"', b'"\\u0078"', 1)
    assert caller.ask(content=escaped, headers=JSON).status_code == 200
    assert json.loads(seen[1][0]) == json.loads(body)
    turned = b'{"x": %s, "\\u0078": %s}' % (json.dumps(inside).encode(), json.dumps(outside).encode())
    assert caller.ask(content=turned, headers=JSON).status_code == 400, "the last one counts, and is out of bounds"
    assert body.count(b'"x"') == 1
    assert isinstance(question, Question)
    assert np.allclose(question.inputs["image"][0], json.loads(body)["x"])
    assert question.caller == "ip:192.0.2.1"
    with pytest.raises(ValueError, match="read-only"):
        question.inputs["image"][0] = 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("PUT", "/predict", 405), ("HEAD", "/predict", 405), ("OPTIONS", "/predict", 405),
     ("POST", "/predict%0A", 404), ("POST", "/predict%0a%0a", 404), ("POST", "/%70redict", 400), ("POST", "/predict/", 307),
     ("POST", "//predict", 404), ("POST", "/PREDICT", 404), ("POST", "/other%0d", 404)],
)  # fmt: skip
def test_no_way_around_by_method_or_spelling(settings: Settings, method: str, path: str, status: int) -> None:
    found = Caller(starlette(**settings())).ask(method, path, content=b"{}", headers=JSON)
    assert found.status_code == status
    assert "probabilities" not in found.text


def test_a_router_takes_a_line_end_for_nothing() -> None:
    """Control: without the guard's own look at it, such a path would reach the endpoint."""
    bare = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    assert Caller(bare).ask(path="/predict%0A", json={"x": images(1).tolist()}).status_code == 200


def test_limits(settings: Settings) -> None:
    options = settings() | {"limits": Limits(request_body_bytes=5_000, request_rows=2)}
    caller = Caller(starlette(**options))
    assert caller.ask(content=b'{"x": "' + b"a" * 6_000 + b'"}', headers=JSON).status_code == 413
    assert caller.ask(json={"x": np.zeros((3, 64)).tolist()}).status_code == 413
    assert caller.ask(json={"x": np.zeros((2, 64)).tolist()}).status_code == 200
    parts = [{"type": "http.request", "body": b" " * 3_000, "more_body": True} for _ in range(9)]
    sent = raw(starlette(**options), {"headers": [(b"content-type", b"application/json")]}, *parts)
    assert sent[0]["status"] == 413, "without a length that was said before"
    assert raw(starlette(**options), {}, parts[0]) == [], "a client that goes gets no answer"


def test_headers_that_stand_twice(settings: Settings) -> None:
    body = json.dumps({"x": images(1)[0].tolist()}).encode()
    message = {"type": "http.request", "body": body}
    once = [(b"content-type", b"application/json")]
    app = starlette(**settings())
    assert raw(app, {"headers": once}, message)[0]["status"] == 200
    assert raw(app, {"headers": once * 2}, message)[0]["status"] == 400


def test_callers(settings: Settings) -> None:
    known = {b"k1": "ann", b"k2": "bob"}

    def who(scope: Any) -> str | None:
        return known.get(dict(scope["headers"]).get(b"x-key", b""))

    async def who_async(scope: Any) -> str | None:
        return who(scope)

    async def echo(request: Request) -> Response:
        return JSONResponse({"probabilities": [GOOD], "who": request.scope["garrison"].caller})

    body = {"x": images(1).tolist()}
    for function in (who, who_async):
        caller = Caller(starlette(echo, **settings(), caller=function, keep=["who"]))
        assert caller.ask(json=body).status_code == 401
        assert caller.ask(json=body, headers={"x-key": "k2"}).json()["who"] == "bob"
    for wrong in (lambda _: 5, lambda scope: scope["nothing"], lambda _: "x" * 1000):
        assert Caller(starlette(echo, **settings(), caller=wrong)).ask(json=body).status_code == 500


def test_budgets_are_charged_and_kept(settings: Settings) -> None:
    fails = [False]

    async def endpoint(request: Request) -> Response:
        return JSONResponse({}, status_code=400) if fails[0] else await predict(request)

    one, other = (Caller(starlette(endpoint, **settings("metered")), address) for address in ("192.0.2.1", "192.0.2.9"))
    rows = {"x": images(60).tolist()}
    assert one.ask(json={"x": [[9.0] * 64] * 60}).status_code == 400, "not charged: the client's own fault"
    fails[0] = True
    assert one.ask(json=rows).status_code == 400, "not charged: no answer"
    fails[0] = False
    assert one.ask(json=rows).status_code == 200
    assert one.ask(json=rows).status_code == 429
    assert one.ask(json={"x": images(40).tolist()}).status_code == 200
    assert one.ask(json={"x": images(1).tolist()}).status_code == 429
    again = Caller(starlette(endpoint, **settings("metered")))
    assert again.ask(json={"x": images(1).tolist()}).status_code == 429, "a restart gives nothing back"
    assert other.ask(json=rows).status_code == 200, "another caller"


@pytest.mark.parametrize("binary", [True, False])
def test_open_inference_protocol(bundles: Bundles, settings: Settings, binary: bool) -> None:
    x = images(5)

    async def endpoint(request: Request) -> Response:
        body, length = await request.body(), request.headers.get("inference-header-content-length")
        assert (length is not None) == binary
        values = own_model(request.scope["garrison"].inputs["image"])
        output = {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": list(values.shape),
            "data": values.ravel().tolist(),
        }
        return JSONResponse({"model_name": "mine", "outputs": [output], "raw": len(body)})

    app = starlette(endpoint, **settings() | {"inputs": None, "output": None})
    body, length = encode_request({"image": x}, binary=binary, request_id="7")
    headers = {"inference-header-content-length": str(length)} if binary else JSON
    found = Caller(app).ask(content=body, headers=headers)
    assert found.status_code == 200
    answer = decode_response(found.content, int(found.headers.get("inference-header-content-length", -1)))
    assert (answer.id, answer.model) == ("7", "mlp")
    assert np.allclose(answer.outputs["probabilities"], expected(bundles, x), atol=1e-5)
    assert Caller(app).ask(content=body[:-2], headers=headers).status_code == 400


def test_columns_and_functions(bundles: Bundles, settings: Settings) -> None:
    def pixels(body: dict[str, Any]) -> Any:
        return np.array(body["image"]["pixels"], dtype=np.float32).reshape(-1, 1, 8, 8)

    async def endpoint(request: Request) -> Response:
        values = own_model(request.scope["garrison"].inputs["image"])
        return JSONResponse({"probabilities": values.tolist()})

    x = images(2)
    app = starlette(endpoint, **settings() | {"inputs": pixels})
    found = Caller(app).ask(json={"image": {"pixels": x.tolist()}})
    assert np.allclose(found.json()["probabilities"], expected(bundles, x), atol=1e-5)
    for bad in ({}, {"image": 3}, {"image": {"pixels": [1, 2]}}, {"image": {"pixels": "x"}}):
        assert Caller(app).ask(json=bad).status_code == 400
    app = starlette(endpoint, **settings() | {"inputs": {"image": "picture"}})
    assert Caller(app).ask(json={"picture": x.tolist()}).status_code == 200
