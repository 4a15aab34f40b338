"""MLServer, without worker processes: the model in the server's own process, as is fastest for small models."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from typing import Any

import numpy as np
from benchmarks.serving.peers.common import Array, Body, Model

WIRE = "Open Inference Protocol over HTTP, JSON with the tensor in base64 (BYTES); answer in JSON"


def encode(x: Array, name: str) -> Body:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(x.tobytes()).decode()]}
    content = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
    return Body(f"/v2/models/{name}/infer", {"Content-Type": "application/json"}, content)


def decode(answer: bytes, json_bytes: int) -> Array:  # noqa: ARG001  the same for every peer
    return np.array(json.loads(answer)["outputs"][0]["data"], np.float32)


try:  # it finds the class by its name, so it must stand here; the load generator only needs what is above
    from mlserver import MLModel
except ImportError:
    MLModel = object


class Onnx(MLModel):  # type: ignore[misc, unused-ignore]
    async def load(self) -> bool:
        self.onnx = Model(os.environ["BENCH_FILE"])
        return True

    async def predict(self, payload: Any) -> Any:
        from mlserver import codecs, types

        values = self.onnx.run_text(payload.inputs[0].data.root[0])
        output = codecs.NumpyCodec.encode_output("probabilities", np.array([values], np.float32))
        return types.InferenceResponse(model_name=self.name, outputs=[output])


def main(path: str, port: int) -> None:
    import mlserver

    os.environ["BENCH_FILE"] = path
    settings = mlserver.Settings(
        host="127.0.0.1", http_port=port, grpc_port=0, metrics_endpoint=None, parallel_workers=0, debug=False
    )
    implementation = f"{__spec__.name}.Onnx"
    model = mlserver.ModelSettings(name=os.environ["BENCH_MODEL"], implementation=implementation)

    async def serve() -> None:
        await mlserver.MLServer(settings).start([model])

    asyncio.run(serve())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
