"""Run in KServe's own environment by `test_kserve`: its unmodified gRPC client asks a service. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


async def ask(address: str) -> dict[str, Any]:
    client = InferenceGRPCClient(address, timeout=30)
    x = np.load(sys.argv[2])
    found: dict[str, Any] = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready("mlp"),
    }
    for binary in (False, True):
        tensor = InferInput("image", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        answer = await client.infer(InferRequest("mlp", [tensor], request_id="mine"))
        output = answer.outputs[0]
        values = np.asarray(output.as_numpy()).tolist()
        found["raw" if binary else "typed"] = {"id": answer.id, "name": output.name, "values": values}
    try:
        tensor = InferInput("image", [1, 1, 8, 8], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1, 8, 8), 7.0, dtype=np.float32), binary_data=False)
        await client.infer(InferRequest("mlp", [tensor]))
    except Exception as error:  # whatever it calls it
        found["refused"] = str(error)
    await client.close()
    return found


print(json.dumps(asyncio.run(ask(sys.argv[1]))))  # noqa: T201  read by the test
