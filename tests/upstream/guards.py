"""Guard-only bundles for tests, without hardening: made in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.models import BOUNDS, LABELS, PIXELS, RELEASE, SCORE, Sealed, images, misinform, mlp, wrong_network
from tests.serving import Served
from tests.upstream.triton import Triton, onnx_triton

from garrison.bundle.manifest import InputSpec, Provenance, UpstreamEntry
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.oip_client import encode_request
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.server.root import assemble, background
from garrison.types import Array, DefenseSpec, Task
from garrison.upstream.http import connect
from garrison.upstream.model import describe
from garrison.upstream.target import Target

PATH = "/v2/models/guarded/infer"
CHAIN = (BOUNDS, SCORE, misinform(0.6), RELEASE)
PATIENT = Limits(upstream_seconds=30.0)
"""No server here is that slow, unless a test says so."""


def mlp_triton(**more: Any) -> Triton:
    """The small network of `tests.models` on a server that speaks as Triton does."""
    return onnx_triton(mlp(head=False).SerializeToString(), PIXELS, len(LABELS), **more)


def entry_of(url: str, model: str = "digits", **more: Any) -> UpstreamEntry:
    connections = connect(Target(url), DEFAULT_LIMITS)
    described = describe(connections, model, "1", 5.0)
    connections.close()
    output = described.outputs[0].name
    settings: dict[str, Any] = {"version": "1", "output": output, "most_rows": 8} | more
    return UpstreamEntry(model=model, metadata_sha256=described.sha256, digest=described.digest, **settings)


def seal_guard(
    out: Path, entry: UpstreamEntry, chain: tuple[DefenseSpec, ...] = CHAIN, owner: OwnerKey | None = None
) -> Sealed:
    """A bundle that guards a model on another server."""
    key = owner or OwnerKey.generate()
    draft = Draft(
        name="guarded",
        version=1,
        model=None,
        upstream=entry,
        misinformation=wrong_network(),
        task=Task.CLASSIFICATION,
        labels=LABELS,
        inputs=(InputSpec(name="image", datatype="FP32", shape=PIXELS, minimum=0.0, maximum=1.0),),
        guard=chain,
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="upstream", source_sha256="0" * 64),
        rows={"image": images(4)},
    )
    seal(draft, key, out)
    return Sealed(out, key, mlp(head=False), key.misinformation_key("guarded"))


@contextmanager
def gateway(sealed: Sealed, url: str, state: Path, limits: Limits = PATIENT, **server: Any) -> Iterator[Served]:
    """A gateway before the server at `url`."""
    settings = ServerConfig(port=0, isolation="none", state=str(state), upstream=url, **server)
    assembly = assemble(Config(server=settings, limits=limits), [sealed.path], [sealed.owner.public])
    with background(assembly) as found:
        yield Served(found, assembly)


def infer(url: str, x: Array, **headers: str) -> httpx.Response:
    body, json_bytes = encode_request({"image": x})
    return httpx.post(url + PATH, content=body, headers={"inference-header-content-length": str(json_bytes)} | headers)
