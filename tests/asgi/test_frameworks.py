"""FastAPI with its own schema, routers and mounts, websockets, and a real server on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from tests.asgi.apps import Caller, expected, failure, own_model, predict, raw, starlette
from tests.models import CLASSES, images
from tests.serving import Bundles

from garrison.asgi import Guarded
from garrison.limits import Limits

fastapi = pytest.importorskip("fastapi")
pydantic = pytest.importorskip("pydantic")
uvicorn = pytest.importorskip("uvicorn")

Settings = Callable[..., dict[str, Any]]
FIELDS: dict[str, Any] = {"path": "/predict", "inputs": "x", "output": "probabilities"}


class Picture(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    x: list[list[float]]


class Answer(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    probabilities: list[list[float]]
    took: float = 0.0


def endpoint(picture: Picture) -> Answer:
    return Answer(probabilities=own_model(np.array(picture.x)).tolist(), took=1.0)


class Named(Picture):
    name: str


def named(picture: Named) -> Answer:
    return endpoint(picture)


def flat(rows: int) -> dict[str, Any]:
    return {"x": images(rows).reshape(rows, -1).tolist()}


def test_three_lines_in_a_fastapi_app(bundles: Bundles, settings: Settings) -> None:
    app = fastapi.FastAPI()
    app.post("/predict")(endpoint)
    app.add_middleware(Guarded, **settings(), **FIELDS)
    assert failure(app) == ""
    found = Caller(app).ask(json=flat(30))
    assert found.json().keys() == {"probabilities"}
    assert np.allclose(found.json()["probabilities"], expected(bundles, images(30)), atol=1e-5)
    assert Caller(app).ask(json={"y": 1}).status_code == 400
    assert Caller(app).ask("GET", "/docs").status_code == 200


def test_the_apps_own_checks_get_through(settings: Settings) -> None:
    app = fastapi.FastAPI()
    app.post("/predict")(named)
    app.add_middleware(Guarded, **settings(), **FIELDS)
    found = Caller(app).ask(json=flat(1))
    assert found.status_code == 422
    assert "name" in found.text
    assert Caller(app).ask(json=flat(1) | {"name": "me"}).status_code == 200


def test_routers_and_prefixes(settings: Settings) -> None:
    def app(path: str, *prefixes: str) -> Any:
        router, found = fastapi.APIRouter(), fastapi.FastAPI()
        router.post("/predict")(endpoint)
        for prefix in prefixes:
            found.include_router(router, prefix=prefix)
        found.add_middleware(Guarded, **settings(), **FIELDS | {"path": path})
        return found

    assert failure(app("/v1/predict", "/v1")) == ""
    assert Caller(app("/v1/predict", "/v1")).ask(path="/v1/predict", json=flat(2)).json().keys() == {"probabilities"}
    assert "no route answers POST /predict" in failure(app("/predict", "/v1"))
    assert "also reached" in failure(app("/v1/predict", "/v1", "/v2"))


def test_mounted_apps(settings: Settings) -> None:
    inner = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    outer = Starlette(routes=[Mount("/api", app=inner)])
    outer.add_middleware(Guarded, **settings(), **FIELDS | {"path": "/api/predict"})
    assert failure(outer) == ""
    answer = Caller(outer).ask(path="/api/predict", json=flat(1)).json()
    assert answer.keys() == {"probabilities"}
    guarded = starlette(**settings())
    assert (
        Caller(Starlette(routes=[Mount("/api", app=guarded)])).ask(path="/api/predict", json=flat(1)).json() == answer
    )
    lost = Starlette(routes=[Mount("/api", app=inner)])
    lost.add_middleware(Guarded, **settings(), **FIELDS)
    assert "no route answers" in failure(lost)


def test_behind_a_proxy_with_a_prefix(settings: Settings) -> None:
    message = {"type": "http.request", "body": b"{}"}
    for path, root in (("/predict", "/api"), ("/api/predict", "/api"), ("/predict", "")):
        sent = raw(starlette(**settings()), {"path": path, "root_path": root}, message)
        assert sent[0]["status"] == 400, "guarded: the body is no question"


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json({"probabilities": [0.2] * CLASSES})


def test_websockets(settings: Settings) -> None:
    app = starlette(predict, WebSocketRoute("/predict", talk), **settings())
    assert "also takes websockets" in failure(app)
    catching = starlette(predict, **settings())
    sent = raw(catching, {"type": "websocket"}, {"type": "websocket.connect"})
    assert [message["type"] for message in sent] == ["websocket.close"]
    elsewhere = starlette(predict, WebSocketRoute("/talk", talk), **settings())
    assert failure(elsewhere) == ""
    assert (
        raw(elsewhere, {"type": "websocket", "path": "/talk"}, {"type": "websocket.connect"})[0]["type"]
        == "websocket.accept"
    )


def test_any_asgi_app(bundles: Bundles, settings: Settings) -> None:
    """Without a framework; nothing is known of routes then."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        question = scope["garrison"]
        assert scope["extensions"] == {}
        body = b'{"probabilities": %s}' % str(own_model(question.inputs["image"]).tolist()).encode()
        await send({"type": "http.response.push", "path": "/raw"})
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})
        await send({"type": "http.response.body", "body": body})

    found = Caller(Guarded(app, **settings(), **FIELDS)).ask(json=flat(3))
    assert np.allclose(found.json()["probabilities"], expected(bundles, images(3)), atol=1e-5)


def test_many_rows_and_many_requests_at_once(bundles: Bundles, settings: Settings) -> None:
    app = starlette(**settings() | {"limits": Limits(inline_rows=4)})
    sizes = [1, 9, 2, 40, 3, 1, 17, 64]

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return list(await asyncio.gather(*(client.post("/predict", json=flat(n)) for n in sizes)))

    for rows, found in zip(sizes, asyncio.run(main()), strict=True):
        assert np.allclose(found.json()["probabilities"], expected(bundles, images(rows)), atol=1e-5)


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="auto"))

        def run() -> None:
            with contextlib.suppress(SystemExit):
                server.run(sockets=[listener])

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        if not server.started:
            raise RuntimeError("did not start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_on_a_real_port(bundles: Bundles, settings: Settings, tmp_path: Path) -> None:
    app = fastapi.FastAPI()
    app.post("/predict")(endpoint)
    app.add_middleware(Guarded, **settings("metered"), **FIELDS)
    with running(app) as url, httpx.Client(base_url=url) as client:
        found = client.post("/predict", json=flat(7))
        assert np.allclose(found.json()["probabilities"], expected(bundles, images(7), "metered"), atol=1e-5)
        assert client.post("/predict%0A", json=flat(1)).status_code == 404
        assert client.post("/predict", json=flat(99)).status_code == 429
        statuses = [client.post("/predict", json=flat(1)).status_code for _ in range(100)]
    assert statuses.count(200) == 93, "of 100 rows"
    assert (tmp_path / "state" / "budgets.sqlite3").exists()


def test_a_mistake_stops_a_real_server(settings: Settings) -> None:
    app = starlette(**settings() | {"path": "/elsewhere"})
    with pytest.raises(RuntimeError, match="did not start"), running(app):
        pass
