"""What is wrong with the settings stops the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.asgi.apps import Caller, failure, predict, raw, starlette
from tests.models import images

from garrison.errors import BundleError, ConfigError, GuardError, KeyFileError

Settings = Callable[..., dict[str, Any]]


async def other(request: Request) -> Response:
    return Response("other")


def test_a_good_app_starts(settings: Settings) -> None:
    assert failure(starlette(**settings())) == ""
    assert failure(starlette(predict, Route("/other", other), **settings("metered"))) == ""


@pytest.mark.parametrize(
    ("more", "options", "words"),
    [
        ((), {"path": "/predit"}, "no route answers POST /predit"),
        ((), {"path": "/predict/"}, "no route answers"),
        ((), {"path": "predict"}, "path must name"),
        ((), {"path": ()}, "path must name"),
        ((), {"path": "/{name}"}, "without parameters"),
        ((Route("/again", predict, methods=["POST"]),), {}, "also reached at /again"),
        ((Route("/predict", other, methods=["GET"]),), {}, "GET /predict is answered by another function"),
        ((), {"inputs": ["a", "b"]}, "2 features"),
        ((), {"inputs": {"a": "b"}}, "for each of image"),
        ((), {"inputs": None, "label": "label"}, "go with an app's own JSON"),
        ((), {"keep": ["probabilities"]}, "cannot be kept"),
        ((), {"label": "classes"}, "stand twice"),
        ((), {"tighten": {"nothing": {}}}, "no such defense"),
        ((), {"trust": "nowhere.pub"}, "cannot be read"),
        ((), {"bundle": "nowhere"}, "BundleError"),
        ((), {"secret": "nowhere.secret"}, "cannot be read"),
    ],
)
def test_mistakes_stop_the_start(settings: Settings, more: Any, options: dict[str, Any], words: str) -> None:
    app = starlette(predict, *more, **settings() | options)
    assert words.removeprefix("BundleError") in failure(app)
    if words == "BundleError":
        assert "Error" in failure(app)
    with pytest.raises((ConfigError, GuardError, KeyFileError, BundleError)):
        raw(app, {})
    with pytest.raises((ConfigError, GuardError, KeyFileError, BundleError)):
        raw(app, {"path": "/unguarded"})


def test_two_paths_of_one_endpoint_may_both_be_guarded(settings: Settings) -> None:
    again = Route("/again", predict, methods=["POST"])
    app = starlette(predict, again, **settings() | {"path": ["/predict", "/again"]})
    assert failure(app) == ""
    assert "secret" not in Caller(app).ask(path="/again", json={"x": images(1).tolist()}).text
