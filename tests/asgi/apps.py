"""A user's own apps, with the user's own model behind `POST /predict`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from tests.models import mlp
from tests.serving import Bundles

from garrison.asgi import Guarded
from garrison.enclave.service import Service
from garrison.types import Array

SESSION = ort.InferenceSession(mlp(0).SerializeToString(), providers=["CPUExecutionProvider"])


def own_model(x: Array) -> Array:
    """What the user's code computes; the same numbers as the sealed model's."""
    found: Array = SESSION.run(["probabilities"], {"image": np.asarray(x, dtype=np.float32).reshape(-1, 1, 8, 8)})[0]
    return found


async def predict(request: Request) -> Response:
    body = await request.json()
    values = own_model(body["x"])
    return JSONResponse({"probabilities": values.tolist(), "secret": "raw", "note": body.get("note"), "label": "cat"})


def starlette(endpoint: Any = predict, *more: BaseRoute, **options: Any) -> Starlette:
    app = Starlette(routes=[Route("/predict", endpoint, methods=["POST"]), *more])
    app.add_middleware(Guarded, **({"path": "/predict", "inputs": "x", "output": "probabilities"} | options))
    return app


@dataclass(frozen=True, slots=True)
class Caller:
    """Asks an app in this process, as a client of its own."""

    app: Any
    address: str = "192.0.2.1"

    def ask(self, method: str = "POST", path: str = "/predict", **more: Any) -> httpx.Response:
        async def main() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, client=(self.address, 1), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                return await client.request(method, path, **more)

        return asyncio.run(main())


def raw(app: Any, scope: dict[str, Any], *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """What an app sends to these messages, on the level of ASGI."""
    sent: list[dict[str, Any]] = []
    left = list(messages)

    async def receive() -> dict[str, Any]:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    basic = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [],
        "query_string": b"",
        "client": ("192.0.2.1", 1),
    }
    asyncio.run(
        app(
            {**basic, "raw_path": b"", "root_path": "", "scheme": "http", "server": ("app", 80), **scope}, receive, send
        )
    )
    return sent


def expected(bundles: Bundles, x: Any, name: str = "mlp-1") -> Any:
    """What the sealed model answers behind its guard."""
    sealed = bundles.sealed[name]
    return Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]


def failure(app: Any) -> str:
    """Why the app does not start."""
    sent = raw(app, {"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    if sent[0]["type"] == "lifespan.startup.complete":
        return ""
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    return str(sent[0]["message"])
