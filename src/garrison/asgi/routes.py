"""Looks, at start, whether the app's routes are guarded as was meant. Knows Starlette's routes (and so FastAPI's) by what they offer.

Not found: other code that calls the same model at another path; a route that is added after the start.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from garrison.errors import ConfigError

POST = "POST"
_OTHERS = ("GET", "PUT", "PATCH", "DELETE")
_DEEPEST = 16

Scope = Mapping[str, Any]


def route_path(scope: Scope) -> str:
    """The path as the app's router sees it: without the prefix under which the app is mounted."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in {"", "/"}:
        return path[len(prefix) :]
    return path


def app_behind(app: Any) -> Any:
    """The app behind a chain of middlewares, known by its routes; None where there is none that is known.

    Raises:
        ConfigError: it changes paths itself, behind the guard.
    """
    for _ in range(_DEEPEST):
        if isinstance(getattr(app, "routes", None), Sequence):
            break
        app = getattr(app, "app", None)
    prefix = getattr(app, "root_path", "")
    if prefix:
        raise ConfigError(
            f"Guarded: the app has a root_path of its own, {prefix!r}; use app.add_middleware(Guarded, ...)"
        )
    return app


def check_routes(app: Any, paths: Sequence[str]) -> None:
    """See that each path is one that the app answers, and that its endpoint is reached in no other way.

    Args:
        app: the application, or None where it is not known; then nothing is checked.
        paths: the guarded paths.

    Raises:
        ConfigError: a path without a route, or a way around the guard.
    """
    routes = getattr(app, "routes", None)
    if not isinstance(routes, Sequence):
        return
    endpoints = []
    for path in paths:
        endpoint = _endpoint(routes, path, POST)
        if endpoint is None:
            known = ", ".join(sorted({at for at, _ in _all(routes) if at})) or "none"
            raise ConfigError(f"Guarded: no route answers POST {path}, so nothing would be guarded; there are {known}")
        endpoints.append(endpoint)
        _check_others(routes, path, endpoint)
    _check_twice(routes, paths, endpoints)


def _check_others(routes: Sequence[Any], path: str, endpoint: Any) -> None:
    for method in _OTHERS:
        other = _endpoint(routes, path, method)
        if other is not None and other is not endpoint:
            raise ConfigError(
                f"Guarded: {method} {path} is answered by another function, which would not be reached: "
                "a guarded path takes POST alone. Give it a path of its own"
            )
    if _endpoint(routes, path, "", kind="websocket") is not None:
        raise ConfigError(
            f"Guarded: {path} also takes websockets, which cannot be guarded. Give them a path of their own"
        )


def _check_twice(routes: Sequence[Any], paths: Sequence[str], endpoints: Sequence[Any]) -> None:
    """The same function under a path that is not guarded."""
    for endpoint in endpoints:
        ways = [at for at, found in _all(routes) if _same(found, endpoint)]
        if len(ways) > sum(1 for other in endpoints if _same(other, endpoint)):
            raise ConfigError(
                f"Guarded: the endpoint of {', '.join(paths)} is also reached at {', '.join(sorted(set(ways) - set(paths)))}; "
                "guard these paths too, or take them away"
            )


def _same(one: Any, other: Any) -> bool:
    """Whether two endpoints are one function, perhaps decorated."""
    one, other = _bare(one), _bare(other)
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return _same(one.func, other.func) and (one.args, one.keywords) == (other.args, other.keywords)
    return bool(one == other)  # a bound method is another object each time


def _bare(endpoint: Any) -> Any:
    while True:
        if isinstance(endpoint, functools.partial) and not (endpoint.args or endpoint.keywords):
            endpoint = endpoint.func
        elif hasattr(endpoint, "__wrapped__"):
            endpoint = endpoint.__wrapped__
        else:
            return endpoint


def _endpoint(routes: Iterable[Any], path: str, method: str, kind: str = "http") -> Any:
    """What would answer; None where nothing does."""
    basic = {"type": kind, "method": method, "path": path, "root_path": "", "headers": [], "path_params": {}}
    return _found(routes, basic, 0)


def _found(routes: Iterable[Any], scope: dict[str, Any], depth: int) -> Any:
    for route in routes:
        match, child = route.matches(dict(scope))
        if match.name != "FULL":
            continue
        if child.get("path_params") and scope["method"] == POST:
            raise ConfigError(
                f"Guarded: {scope['path']} is answered by a route with parameters ({', '.join(child['path_params'])}), and with other "
                "values it would not be guarded. Give the guarded path a route of its own"
            )
        inner = _inner(route)
        if inner is None or depth >= _DEEPEST:
            return child.get("endpoint", route)
        return _found(inner, {**scope, **child}, depth + 1)
    return None


def _all(routes: Iterable[Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Path and endpoint of every route; the path is that within its own router."""
    for route in routes:
        inner = _inner(route)
        if inner is not None and depth < _DEEPEST:
            yield from _all(inner, depth + 1)
        elif getattr(route, "endpoint", None) is not None:
            yield getattr(route, "path", ""), route.endpoint


def _inner(route: Any) -> Sequence[Any] | None:
    """The routes of a mounted app, or of a router that FastAPI includes (newer versions do not copy its routes)."""
    included = getattr(route, "effective_candidates", None)
    if callable(included):
        candidates: Sequence[Any] = included()
        return candidates
    inner = getattr(route, "routes", None)
    return inner if isinstance(inner, Sequence) and inner else None
