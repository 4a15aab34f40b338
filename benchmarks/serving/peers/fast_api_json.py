"""FastAPI as its documentation shows it: JSON that pydantic checks. Shown beside; its binary form is the faster."""

from __future__ import annotations

import json
import sys

import numpy as np
from benchmarks.serving.peers.common import Array, Body, Model, from_json

WIRE = "JSON, checked by pydantic, both ways"


def encode(x: Array, name: str) -> Body:
    content = json.dumps({"x": x.ravel().astype(float).tolist()}, separators=(",", ":")).encode()
    return Body(f"/predict/{name}", {"Content-Type": "application/json"}, content)


def decode(answer: bytes, json_bytes: int) -> Array:  # noqa: ARG001  the same for every peer
    return from_json(answer)


def main(path: str, port: int) -> None:
    import pydantic
    import uvicorn
    from fastapi import FastAPI

    question = pydantic.create_model("Question", x=(list[float], ...))
    said = pydantic.create_model("Said", probabilities=(list[float], ...))
    app, model = FastAPI(), Model(path)

    async def predict(body: pydantic.BaseModel) -> object:
        values = np.array(body.x, np.float32)  # type: ignore[attr-defined]
        return {"probabilities": model.run(values.reshape(model.shape))[0].tolist()}

    # FastAPI reads the annotations, which are strings here: give it the classes.
    predict.__annotations__ = {"body": question, "return": said}
    app.post("/predict/{name}")(predict)
    uvicorn.run(app, port=port, log_level="warning", access_log=False, loop="uvloop", http="httptools")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
