"""What endpoints and clients do on the level of ASGI that no framework does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.asgi.apps import Caller, own_model, raw, starlette
from tests.models import images

from garrison.asgi import Guarded
from garrison.limits import Limits

Settings = Callable[..., dict[str, Any]]
FIELDS: dict[str, Any] = {"path": "/predict", "inputs": "x", "output": "probabilities"}
JSON = [(b"content-type", b"application/json")]


@pytest.mark.parametrize("second", [200, 422, 500])
def test_an_answer_that_is_begun_twice_does_not_leave(second: int, settings: Settings) -> None:
    """The body of a 200 once left under the status of a second start, since the app's own 4xx get through."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.dumps({"probabilities": own_model(images(1)).tolist(), "secret": "raw"}).encode()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.start", "status": second})
        await send({"type": "http.response.body", "body": b""})

    found = Caller(Guarded(app, **settings(), **FIELDS)).ask(json={"x": images(1).tolist()})
    assert found.status_code == 500
    assert found.json()["code"] == "internal"


def test_a_body_that_never_begins_ends_in_time(settings: Settings) -> None:
    options = settings() | {"limits": Limits(body_read_seconds=0.2)}
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [*JSON, (b"content-length", b"100")]}
    asyncio.run(asyncio.wait_for(starlette(**options)(scope | {"client": ("192.0.2.1", 1)}, receive, send), 60.0))
    assert sent[0]["status"] == 408


def test_bytes_that_are_no_utf8_do_not_get_through(settings: Settings) -> None:
    """A reader that passes over them would find two fields `x`, where the guard has found one."""

    async def endpoint(request: Request) -> Response:
        found = json.loads((await request.body()).decode(errors="ignore"))
        return JSONResponse({"probabilities": own_model(found["x"]).tolist(), "n": len(found)})

    good, other = (json.dumps(images(1, seed=k).tolist()).encode() for k in (0, 1))
    body = b'{"x": ' + good + b', "x\xff": ' + other + b"}"
    sent = raw(starlette(endpoint, **settings()), {"headers": JSON}, {"type": "http.request", "body": body})
    assert sent[0]["status"] == 400
    kept = body.replace(b"\xff", "\u00ff".encode())
    sent = raw(starlette(endpoint, **settings()), {"headers": JSON}, {"type": "http.request", "body": kept})
    assert sent[0]["status"] == 200, "control: other letters are no matter"


def test_an_app_may_be_started_again(settings: Settings) -> None:
    """Tests of a user's own app start it once for each."""
    app = starlette(**settings("metered"))
    testclient = pytest.importorskip("starlette.testclient")
    for _ in range(2):
        with testclient.TestClient(app) as client:
            assert client.post("/predict", json={"x": images(1).tolist()}).status_code == 200
