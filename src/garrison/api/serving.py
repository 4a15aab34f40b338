"""`serve` in the background, and `predict`."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from garrison.api.keys import Trust, trusted
from garrison.client import Client, Prediction
from garrison.config import CallerConfig, Config, ServerConfig
from garrison.errors import ConfigError
from garrison.limits import Limits
from garrison.server.root import assemble, background
from garrison.types import Array


class Server:
    """A service in the background of this process; stops at `close`, at the end of a `with` block, or with the process.

    Attributes:
        url: where it listens.
    """

    def __init__(self, bundles: Sequence[Path], trust: Trust, config: Config) -> None:
        self._stack = contextlib.ExitStack()
        self.url = self._stack.enter_context(background(assemble(config, bundles, trusted(trust))))
        atexit.register(self.close)

    def client(self, **options: Any) -> Client:
        """A client of this service; the options are those of `garrison.client.Client`."""
        return Client(self.url, **options)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<garrison service at {self.url}>"


def serve(
    *bundles: str | Path,
    trust: Trust,
    port: int = 0,
    guard: Mapping[str, Mapping[str, Any]] | None = None,
    callers: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Limits | None = None,
    **server: Any,
) -> Server:
    """Serve sealed models behind their guards, in the background.

    Args:
        bundles: folders of sealed models.
        trust: keys that may have signed them.
        port: to listen at, on this machine alone unless `host` says otherwise; 0 for any free one.
        guard: by defense, what is to be tightened.
        callers: by caller, its stricter release policy: fields of `garrison.config.CallerConfig`.
        limits: sizes, counts and times.
        server: fields of `garrison.config.ServerConfig`, such as `isolation`, `keys`, `state`.

    Raises:
        ConfigError: settings that cannot be, or are not safe.
        BundleError, GuardError, KeyFileError, IsolationError: a model must not be served, or not like this.
    """
    unknown = sorted(set(server) - set(ServerConfig.__struct_fields__))
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}; known are {', '.join(ServerConfig.__struct_fields__)}")
    given = {name: str(value) if isinstance(value, Path) else value for name, value in server.items()}
    try:
        settings = msgspec.convert(given | {"port": port}, ServerConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"serve: {error}") from error
    if settings.workers > 1:
        raise ConfigError(
            "workers are processes of `garrison serve`; a service in the background of this one has no others"
        )
    if not isinstance(limits, Limits | None) or not isinstance(guard, Mapping | None):
        raise ConfigError(
            "limits must be a garrison.limits.Limits, and guard a mapping from defenses to their settings"
        )
    changes = {name: dict(change) for name, change in (guard or {}).items()}
    try:
        policies = msgspec.convert(dict(callers or {}), dict[str, CallerConfig])
    except msgspec.ValidationError as error:
        raise ConfigError(f"serve: callers: {error}") from error
    config = Config(server=settings, limits=limits or Limits(), guard=changes, callers=policies)
    return Server([Path(bundle) for bundle in bundles], trust, config)


def predict(url: str, x: Array | Mapping[str, Array], **options: Any) -> Prediction:
    """Ask a service once; for many questions, keep a `garrison.client.Client`.

    Args:
        url: the service's.
        x: the model's one input, or its inputs by name; each (rows, ...).
        options: those of `garrison.client.Client`, such as `api_key`, `model`.

    Raises:
        RequestError, RefusedError, UnavailableError, ServiceError: see `garrison.client.Client`.
    """
    with Client(url, **options) as client:
        return client.predict(x)
