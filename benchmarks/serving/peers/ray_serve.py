"""Ray Serve: one replica behind its HTTP proxy, with all that Ray runs beside them."""

from __future__ import annotations

import signal
import sys
from typing import Any

from benchmarks.serving.peers.common import OCTETS, Array, Body, Model, from_octets, octets

WIRE = "binary tensor in an octet stream, both ways"


def encode(x: Array, name: str) -> Body:
    return octets(f"/predict/{name}", x)


def decode(answer: bytes, json_bytes: int) -> Array:  # noqa: ARG001  the same for every peer
    return from_octets(answer)


def main(path: str, port: int) -> None:
    import ray
    from ray import serve
    from starlette.responses import Response

    class Onnx:
        def __init__(self, path: str) -> None:
            self.model = Model(path)

        async def __call__(self, request: Any) -> Response:
            return Response(self.model.run_bytes(await request.body()), media_type=OCTETS)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = serve.deployment(Onnx, max_ongoing_requests=64, num_replicas=1)
    serve.run(deployment.bind(path), route_prefix="/", name="bench")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
