"""gRPC beside HTTP: the Open Inference Protocol's `GRPCInferenceService` at a port of its own, over the same models, queues and budgets.

Needs the extra `grpc`. This file does without, so that it can say so.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from garrison.config import ServerConfig
from garrison.errors import MissingExtraError
from garrison.server.admission import Admission
from garrison.server.app import App
from garrison.server.held import HeldBytes


class Beside(Protocol):
    """A second way to ask, started and stopped with the server.

    Attributes:
        address: "host:port" once it listens; "" before.
        in_flight: requests that are being answered.
    """

    address: str
    in_flight: int
    tracing: Any

    async def start(self) -> None:
        """Raises `ConfigError`: the port cannot be had."""
        ...

    async def stop(self, seconds: float) -> None:
        """Finish what is in flight, within so many seconds."""
        ...


def make_grpc(config: ServerConfig, app: App, admission: Admission, held: HeldBytes) -> Beside | None:
    """GRPC as the settings ask for it; None where they do not.

    Args:
        admission, held: those of HTTP, which count for both.

    Raises:
        ConfigError: certificates of clients name the callers, which gRPC does not do.
        MissingExtraError: its library is not installed.
    """
    if config.grpc_port is None:
        return None
    try:
        service: Any = importlib.import_module("garrison.server.grpc.service")
    except ModuleNotFoundError as error:
        if error.name != "grpc":
            raise
        raise MissingExtraError("grpcio", "grpc") from error
    made: Beside = service.GrpcServer(config, app, admission, held)
    return made
