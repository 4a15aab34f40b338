"""Ways around the guard that were found: each stops the app from starting. None of these tests is ever taken away."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from tests.asgi.apps import Caller, failure, predict
from tests.models import images

from garrison.asgi import Guarded

Settings = Callable[..., dict[str, Any]]
FIELDS: dict[str, Any] = {"path": "/predict", "inputs": "x", "output": "probabilities"}


class Model:
    async def predict(self, request: Request) -> Response:
        return await predict(request)


@functools.wraps(predict)
async def decorated(request: Request) -> Response:
    return await predict(request)


def route(path: str, endpoint: Any = predict) -> Route:
    return Route(path, endpoint, methods=["POST"])


@pytest.mark.parametrize(
    ("routes", "path"),
    [
        ([route("/{name}/predict")], "/digits/predict"),
        ([Mount("/{tenant}", routes=[route("/predict")])], "/mine/predict"),
        ([Mount("/{tenant}", app=Starlette(routes=[route("/predict")]))], "/mine/predict"),
    ],
)
def test_a_route_with_parameters_answers_at_other_values_too(routes: list[Any], path: str, settings: Settings) -> None:
    other = path.replace("digits", "other").replace("mine", "other")
    bare = Caller(Starlette(routes=routes))
    assert "raw" in bare.ask(path=other, json={"x": images(1).tolist()}).text, "control: it does"
    app = Starlette(routes=routes)
    app.add_middleware(Guarded, **settings(), **FIELDS | {"path": path})
    assert "a route with parameters" in failure(app)
    assert Caller(app).ask(path=other, json={"x": images(1).tolist()}).status_code == 500


@pytest.mark.parametrize(
    "other", [functools.partial(predict), decorated, functools.partial(decorated), Model().predict]
)
def test_the_same_function_in_another_form(other: Any, settings: Settings) -> None:
    endpoint = other.__self__.predict if hasattr(other, "__self__") else predict
    app = Starlette(routes=[route("/predict", endpoint), route("/raw", other)])
    app.add_middleware(Guarded, **settings(), **FIELDS)
    assert "also reached at /raw" in failure(app)


def test_partials_of_other_arguments_are_other_functions(settings: Settings) -> None:
    async def named(request: Request, name: str) -> Response:
        return await predict(request)

    one, other = functools.partial(named, name="one"), functools.partial(named, name="other")
    app = Starlette(routes=[route("/predict", one), route("/other", other)])
    app.add_middleware(Guarded, **settings(), **FIELDS)
    assert failure(app) == ""
    same = Starlette(routes=[route("/predict", one), route("/raw", functools.partial(named, name="one"))])
    same.add_middleware(Guarded, **settings(), **FIELDS)
    assert "also reached at /raw" in failure(same)


def test_an_app_that_is_wrapped_is_looked_through(settings: Settings) -> None:
    app = Starlette(routes=[route("/predict")])
    for wrapped in (app, GZipMiddleware(app)):
        assert "no route answers POST /typo" in failure(Guarded(wrapped, **settings(), **FIELDS | {"path": "/typo"}))
        assert failure(Guarded(wrapped, **settings(), **FIELDS)) == ""
    mounted = Starlette(routes=[Mount("/api", app=Guarded(app, **settings(), **FIELDS))])
    found = Caller(mounted).ask(path="/api/predict", json={"x": images(1).tolist()})
    assert found.json().keys() == {"probabilities"}


def test_a_wrapped_app_with_a_prefix_of_its_own(settings: Settings) -> None:
    """It would take /api/predict for /predict only behind the guard."""
    fastapi = pytest.importorskip("fastapi")

    def app() -> Any:
        found = fastapi.FastAPI()
        found.root_path = "/api"
        found.router.routes.append(route("/predict"))
        return found

    body = {"x": images(1).tolist()}
    assert "raw" in Caller(app()).ask(path="/api/predict", json=body).text, "control: it does"
    wrapped = Guarded(app(), **settings(), **FIELDS)
    assert "root_path" in failure(wrapped)
    assert "raw" not in Caller(wrapped).ask(path="/api/predict", json=body).text
    added = app()
    added.add_middleware(Guarded, **settings(), **FIELDS)
    for path in ("/predict", "/api/predict"):
        assert Caller(added).ask(path=path, json=body).json().keys() == {"probabilities"}
