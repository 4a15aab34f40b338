"""FastAPI on uvicorn (uvloop, httptools), one process."""

from __future__ import annotations

import sys

from benchmarks.serving.peers.common import OCTETS, Array, Body, Model, from_octets, octets

WIRE = "binary tensor in an octet stream, both ways"


def encode(x: Array, name: str) -> Body:
    return octets(f"/predict/{name}", x)


def decode(answer: bytes, json_bytes: int) -> Array:  # noqa: ARG001  the same for every peer
    return from_octets(answer)


def main(path: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, Request, Response

    app, model = FastAPI(), Model(path)

    async def predict(request: Request) -> Response:
        return Response(model.run_bytes(await request.body()), media_type=OCTETS)

    # FastAPI reads the annotations, which are strings here: give it the classes.
    predict.__annotations__ = {"request": Request, "return": Response}
    app.post("/predict/{name}", response_model=None)(predict)
    uvicorn.run(app, port=port, log_level="warning", access_log=False, loop="uvloop", http="httptools")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
