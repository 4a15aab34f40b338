"""LitServe: a front process and one worker process. It reads JSON or forms; numbers in base64 are the fastest that it takes."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.serving.peers.common import Array, Body, Model, base64_json, from_json

WIRE = "JSON with the tensor in base64; answer in JSON"


def encode(x: Array, name: str) -> Body:  # noqa: ARG001  the same for every peer
    return base64_json("/predict", x)


def decode(answer: bytes, json_bytes: int) -> Array:  # noqa: ARG001
    return from_json(answer)


try:  # the worker process finds the class by its name, so it must stand here; the load generator only needs what is above
    from litserve import LitAPI
except ImportError:
    LitAPI = object


class Api(LitAPI):  # type: ignore[misc, unused-ignore]
    path = ""

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.model = Model(self.path)

    def decode_request(self, request: Any) -> str:
        found: str = request["x"]
        return found

    def predict(self, x: str) -> list[float]:
        return self.model.run_text(x)

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"probabilities": output}


# It would take annotations for a schema of the request.
for method in (Api.decode_request, Api.encode_response):
    method.__annotations__.clear()


def main(path: str, port: int) -> None:
    import litserve

    api = Api()
    api.path = path
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(port=port, host="127.0.0.1", num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
