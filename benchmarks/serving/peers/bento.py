"""BentoML: one process. Of raw bytes it makes temporary files; numbers in base64 are the fastest that it takes."""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.serving.peers.common import Array, Body, Model, base64_json, from_json

WIRE = "JSON with the tensor in base64; answer in JSON"


def encode(x: Array, name: str) -> Body:  # noqa: ARG001  the same for every peer
    return base64_json("/predict", x)


def decode(answer: bytes, json_bytes: int) -> Array:  # noqa: ARG001
    return from_json(answer)


def make_service() -> Any:
    import bentoml

    class Onnx:
        def __init__(self) -> None:
            self.model = Model(os.environ["BENCH_FILE"])

        async def predict(self, x: str) -> list[float]:
            return self.model.run_text(x)

    # BentoML reads the annotations, which are strings here: give it the classes.
    Onnx.predict.__annotations__ = {"x": str, "return": list[float]}
    Onnx.predict = bentoml.api(Onnx.predict)  # type: ignore[method-assign]
    return bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False})(Onnx)


if "BENCH_FILE" in os.environ:
    service = make_service()


def main(path: str, port: int) -> None:
    os.environ |= {"BENCH_FILE": path, "BENTOML_DO_NOT_TRACK": "True"}
    words = ["serve", f"{__spec__.name}:service", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *words])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
