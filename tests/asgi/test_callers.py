"""What callers are told that they have left, who gets less of an answer, and who takes too long to ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.asgi.apps import Caller, own_model, predict, raw, starlette
from tests.models import images

from garrison.asgi.reading import BodyReader
from garrison.errors import ConfigError, GuardError, SlowRequestError
from garrison.limits import Limits
from garrison.protocol.oip_client import decode_response, encode_request

Settings = Callable[..., dict[str, Any]]


async def boasting(request: Request) -> Response:
    values = own_model((await request.json())["x"])
    return JSONResponse({"probabilities": values.tolist()}, headers={"ratelimit": "mine", "x-mine": "1"})


def test_headers_say_what_is_left(settings: Settings) -> None:
    caller = Caller(starlette(boasting, **settings("metered")))
    first = caller.ask(json={"x": images(60).tolist()})
    assert first.headers["ratelimit-policy"].startswith('"rows";q=100')
    assert first.headers["ratelimit"].startswith('"rows";r=40'), "ours, not the endpoint's"
    assert first.headers["x-mine"] == "1"
    refused = caller.ask(json={"x": images(60).tolist()})
    assert refused.status_code == 429
    assert refused.headers["ratelimit"].startswith('"rows";r=40')
    free = Caller(starlette(**settings())).ask(json={"x": images(1).tolist()})
    assert "ratelimit" not in free.headers, "control: no budget, no headers"


def test_callers_get_less_where_that_is_set(settings: Settings) -> None:
    options = settings() | {
        "caller": lambda scope: dict(scope["headers"]).get(b"x-customer", b"nobody").decode(),
        "callers": {"*": {"release": "labels"}, "partner": {"release": "full"}},
    }
    caller = Caller(starlette(**options, label="label"))
    body = {"x": images(3).tolist()}
    partner = caller.ask(json=body, headers={"x-customer": "partner"}).json()
    other = caller.ask(json=body).json()
    assert set(partner) == {"probabilities", "label"}
    assert set(other) == {"classes", "label"}
    assert other["label"] == partner["label"]
    assert other["classes"] == np.array(partner["probabilities"]).argmax(axis=1, keepdims=True).tolist()


def test_a_caller_asks_for_no_tensor_that_it_does_not_get(settings: Settings) -> None:
    async def endpoint(request: Request) -> Response:
        values = own_model(request.scope["garrison"].inputs["image"])
        output = {"name": "probabilities", "datatype": "FP32", "shape": list(values.shape), "data": values.tolist()}
        return JSONResponse({"model_name": "mine", "outputs": [output]})

    options = settings() | {"inputs": None, "output": None, "callers": {"*": {"release": "labels"}}}
    caller = Caller(starlette(endpoint, **options))
    for name, status in (("probabilities", 400), ("classes", 200)):
        body, _ = encode_request({"image": images(2)}, binary=False, outputs=(name,))
        found = caller.ask(content=body, headers={"content-type": "application/json"})
        assert found.status_code == status
    assert set(decode_response(found.content, -1).outputs) == {"classes"}


@pytest.mark.parametrize(
    ("name", "callers", "words"),
    [
        ("mlp-1", {"partner": {"release": "some"}}, "some"),
        ("mlp-1", {"partner": {"mode": "labels"}}, "mode"),
        ("mlp-1", {"partner": {"release": "labels", "rows_per_day": 5}}, "garrison serve"),
        ("plain", {"partner": {"release": "full"}}, "partner"),
    ],
)
def test_policies_that_cannot_be(settings: Settings, name: str, callers: Any, words: str) -> None:
    app = starlette(predict, **settings(name), callers=callers)
    with pytest.raises((ConfigError, GuardError), match=words):
        raw(app, {})


def message(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_slow_body_is_given_up_and_others_are_read() -> None:
    reader = BodyReader(Limits(body_read_seconds=0.2))

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def at_once() -> dict[str, Any]:
        return message(b"good")

    async def main() -> None:
        slow = asyncio.create_task(reader.read({}, never))
        assert await reader.read({}, at_once) == b"good"
        with pytest.raises(SlowRequestError):
            await slow
        assert slow.cancelling() == 0
        assert await reader.read({}, at_once) == b"good"
        gone = asyncio.create_task(reader.read({}, never))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(main())
    asyncio.run(main())  # on another loop, as an app that is started again


def test_a_dripping_body_is_given_up() -> None:
    reader = BodyReader(Limits(body_read_seconds=0.2))

    async def drip() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return message(b"x", more=True)

    with pytest.raises(SlowRequestError):
        asyncio.run(reader.read({}, drip))


def test_a_body_in_many_parts(settings: Settings) -> None:
    text = json.dumps({"x": images(2).tolist()}).encode()

    async def main() -> bytes:
        parts = [text[i : i + 100] for i in range(0, len(text), 100)]

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            return message(parts.pop(0), more=len(parts) > 0)

        return await BodyReader(Limits()).read({}, receive)

    assert asyncio.run(main()) == text
