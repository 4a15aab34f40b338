"""What a guarded endpoint may answer, and how: nothing of it leaves but through the guard."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.asgi.apps import Caller, expected, own_model, predict, starlette
from tests.models import CLASSES, images
from tests.serving import Bundles

from garrison.asgi import Guarded
from garrison.limits import Limits

Settings = Callable[..., dict[str, Any]]
JSON = {"content-type": "application/json"}
GOOD = [0.2] * CLASSES


@pytest.mark.parametrize(
    "values",
    [[[0.2] * 4], [[0.2] * 6], GOOD + GOOD, [GOOD, GOOD], [[0.5] * CLASSES], [[-0.2, 0.6, 0.2, 0.2, 0.2]], "text", None,
     [["0.2"] * CLASSES], [[True] * CLASSES], {"a": 1}, [[0.2, 0.2], [0.6]], [], 0.5, [[None] * CLASSES], [[1e400] * CLASSES]],
    ids=str,
)  # fmt: skip
def test_an_answer_that_is_no_answer_does_not_leave(settings: Settings, values: Any) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        return Response(json.dumps({"probabilities": values, "secret": "raw"}), headers={"x-raw": "raw"} | JSON)

    found = Caller(starlette(endpoint, **settings())).ask(json={"x": images(1).tolist()})
    assert found.status_code == 500
    assert found.json() == {"error": "the service failed on this request", "code": "internal"}
    assert "raw" not in found.text
    assert "x-raw" not in found.headers


RAW = json.dumps({"probabilities": [GOOD]})


@pytest.mark.parametrize(
    "answer",
    [
        lambda: Response("raw"),
        lambda: Response(b"\xff\x00raw", media_type="application/json"),
        lambda: Response(gzip.compress(RAW.encode()), headers={"content-encoding": "gzip"}),
        lambda: Response(status_code=204),
        lambda: Response(RAW, status_code=201),
        lambda: Response(RAW, status_code=500),
        lambda: Response(RAW, status_code=503),
        lambda: RedirectResponse("/raw?p=raw"),
        lambda: FileResponse(__file__),
        lambda: Response("[" * 100_000),
    ],
)
def test_other_answers_do_not_leave(settings: Settings, answer: Callable[[], Response]) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        return answer()

    found = Caller(starlette(endpoint, **settings())).ask(json={"x": images(1).tolist()})
    assert found.status_code in {500, 503}
    assert found.json()["code"] == "internal"
    assert "location" not in found.headers


def test_a_streamed_answer_is_put_together(bundles: Bundles, settings: Settings) -> None:
    x = images(2)

    async def endpoint(request: Request) -> Response:
        await request.body()
        text = json.dumps({"probabilities": own_model(x).tolist()})
        return StreamingResponse(iter([text[:7], text[7:20], "", text[20:]]), media_type="application/json")

    found = Caller(starlette(endpoint, **settings())).ask(json={"x": x.tolist()})
    assert np.allclose(found.json()["probabilities"], expected(bundles, x), atol=1e-5)


def test_a_stream_that_breaks_off_leaks_nothing(settings: Settings) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()

        def parts() -> Any:
            yield RAW[:-4]
            raise RuntimeError("broken")

        return StreamingResponse(parts(), media_type="application/json")

    found = Caller(starlette(endpoint, **settings())).ask(json={"x": images(1).tolist()})
    assert found.status_code == 500
    assert "0.2" not in found.text


def test_an_endless_answer_is_cut(settings: Settings) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        return StreamingResponse(itertools.repeat(" " * 10_000), media_type="application/json")

    options = settings() | {"limits": Limits(request_body_bytes=100_000)}
    found = Caller(starlette(endpoint, **options)).ask(json={"x": images(1).tolist()})
    assert found.status_code == 500


def test_exceptions_of_the_endpoint(settings: Settings) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("raw")

    async def finds_fault(request: Request) -> Response:
        raise HTTPException(422, "x must be nice")

    body = {"x": images(1).tolist()}
    found = Caller(starlette(broken, **settings())).ask(json=body)
    assert found.status_code == 500
    assert "raw" not in found.text
    found = Caller(starlette(finds_fault, **settings())).ask(json=body)
    assert (found.status_code, found.text) == (422, "x must be nice"), "the app's own messages get through"


def test_the_answer_does_not_wait_for_work_in_the_background(settings: Settings) -> None:
    order: list[str] = []

    async def endpoint(request: Request) -> Response:
        await request.body()
        return JSONResponse({"probabilities": [GOOD]}, background=BackgroundTask(order.append, "background"))

    app = starlette(endpoint, **settings())

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        async def send_noted(message: Any) -> None:
            order.append(message["type"])
            await send(message)

        await app(scope, receive, send_noted)

    Caller(noted).ask(json={"x": images(1).tolist()})
    assert order == ["http.response.start", "http.response.body", "background"]


def test_compression_works_on_either_side(bundles: Bundles, settings: Settings) -> None:
    x = images(64)
    for first, last in ((Guarded, GZipMiddleware), (GZipMiddleware, Guarded)):
        app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
        for kind in (first, last):
            given = settings() | {"path": "/predict", "inputs": "x"} if kind is Guarded else {}
            app.add_middleware(kind, **given)
        found = Caller(app).ask(json={"x": x.tolist()}, headers={"accept-encoding": "gzip"})
        assert np.allclose(found.json()["probabilities"], expected(bundles, x), atol=1e-5)
        assert ("content-encoding" in found.headers) == (last is GZipMiddleware)
