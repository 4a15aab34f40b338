"""Run in KServe's own environment by `test_kserve`: its unmodified client asks a service. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def ask(url: str) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30, retries=1))
    x = np.load(sys.argv[2])
    found: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "mlp"),
    }
    for binary in (False, True):
        tensor = InferInput("image", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        request = InferRequest("mlp", [tensor], request_id="mine")
        answer = await client.infer(url, request, model_name="mlp")
        output = answer.outputs[0]
        found["binary" if binary else "json"] = {
            "id": answer.id,
            "name": output.name,
            "values": np.asarray(output.as_numpy()).tolist(),
        }
    try:
        tensor = InferInput("image", [1, 1, 8, 8], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1, 8, 8), 7.0, dtype=np.float32), binary_data=False)
        await client.infer(url, InferRequest("mlp", [tensor]), model_name="mlp")
    except Exception as error:  # whatever it calls it
        found["refused"] = str(error)
    await client.close()
    return found


print(json.dumps(asyncio.run(ask(sys.argv[1]))))  # noqa: T201  read by the test
