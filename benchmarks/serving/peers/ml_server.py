"""MLServer, without worker processes: the model in the server's own process, as is fastest for small models."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from benchmarks.serving.peers.common import Array, Body, Model, from_json

WIRE = "Open Inference Protocol over HTTP, tensors in JSON"


def encode(x: Array, name: str) -> Body:
    import json

    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().astype(float).tolist()}
    content = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
    return Body(f"/v2/models/{name}/infer", {"Content-Type": "application/json"}, content)


def decode(answer: bytes, json_bytes: int) -> Array:  # noqa: ARG001  the same for every peer
    import json

    import numpy as np

    return np.array(json.loads(answer)["outputs"][0]["data"], np.float32)


def main(path: str, port: int) -> None:
    import mlserver
    import numpy as np
    from mlserver import codecs, types

    class Onnx(mlserver.MLModel):  # type: ignore[misc, unused-ignore]
        async def load(self) -> bool:
            self.onnx = Model(path)
            return True

        async def predict(self, payload: Any) -> Any:
            tensor = payload.inputs[0]
            x = np.array(tensor.data.root, np.float32).reshape(tensor.shape)
            output = codecs.NumpyCodec.encode_output("probabilities", self.onnx.run(x))
            return types.InferenceResponse(model_name=self.name, outputs=[output])

    settings = mlserver.Settings(
        host="127.0.0.1", http_port=port, grpc_port=0, metrics_endpoint=None, parallel_workers=0, debug=False
    )
    name = os.environ["BENCH_MODEL"]

    async def serve() -> None:
        await mlserver.MLServer(settings).start([mlserver.ModelSettings(name=name, implementation=Onnx)])

    asyncio.run(serve())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
