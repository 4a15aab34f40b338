"""Real sealed models of scikit-learn behind the real service, in this process and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import garrison
from garrison.audit.targets import HttpTarget, ServiceTarget
from garrison.enclave.service import Service
from garrison.types import Array


@dataclass(frozen=True)
class BothWays:
    """One model, twice.

    Attributes:
        local: in this process.
        remote: the same over HTTP.
    """

    local: ServiceTarget
    remote: HttpTarget


@contextmanager
def both_ways(model: Any, rows: Array, folder: Path, **options: Any) -> Iterator[BothWays]:
    """Seal a model and serve it; `options` are those of `garrison.seal`."""
    keys = garrison.keygen(folder / "owner")
    garrison.seal(model, folder / "model", key=keys.private, data=rows, **options)
    bundle = garrison.verify(folder / "model", keys.public)
    with (
        garrison.serve(folder / "model", trust=keys.public, isolation="none", state=folder / "state") as server,
        server.client() as client,
    ):
        yield BothWays(ServiceTarget(Service(bundle), overridden=False), HttpTarget(client, server.url))
