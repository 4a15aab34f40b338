"""A server for gRPC that is stopped while another one begins in the place of one that ended by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.serving import Bundles, serve

from garrison.config import ServerConfig
from garrison.server.admission import Admission
from garrison.server.app import App
from garrison.server.auth import Authenticator
from garrison.server.grpc import make_grpc
from garrison.server.held import HeldBytes

pytest.importorskip("grpc")
SECONDS = 60


def test_stopping_while_another_one_begins_ends(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(bundles, "mlp-1", state=tmp_path, grpc_port=None) as served:
        asyncio.run(_stopped_too_early(served.assembly.app, monkeypatch))


async def _stopped_too_early(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = make_grpc(ServerConfig(grpc_port=0), app, Admission(Authenticator(None)), HeldBytes(1))
    assert server is not None
    await server.start()
    real, begins, goes_on = server._begin, asyncio.Event(), asyncio.Event()

    async def slow(port: int) -> None:
        begins.set()
        await goes_on.wait()
        await real(port)

    monkeypatch.setattr(server, "_begin", slow)
    await server._server.stop(0)  # as if it had ended by itself
    await asyncio.wait_for(begins.wait(), SECONDS)
    stopping = asyncio.ensure_future(server.stop(1.0))
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait_for(stopping, SECONDS)
