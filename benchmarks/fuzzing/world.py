"""A small model behind an isolated server with HTTP, gRPC and a ledger; well-formed requests to it, and their right answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.fuzzing.mutations import Request
from tests.models import BOUNDS, CLASSES, RELEASE, images, seal_mlp
from tests.serving import budget

from garrison.enclave.host import Launch, launch
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.protocol.protobuf import field, packed, string
from garrison.types import Array

PATH = b"/v2/models/mlp/infer"
INPUTS, NEVER_REACHED, TOLERANCE = 8, 10**12, 1e-5
_LENGTH = b"Inference-Header-Content-Length"
_NAME, _VERSION, _INPUT, _RAW = 1, 2, 5, 7
_TENSOR_NAME, _DATATYPE, _SHAPE = 1, 2, 3


@dataclass(frozen=True, slots=True)
class World:
    """A running server.

    Attributes:
        pid: of its first process.
        grpc: "host:port".
        folder: its ledger is in `ledger`, its log in `log`, its owner's key in `owner.pub`.
        x: inputs of one row each; `right`, what the model answers.
    """

    pid: int
    url: str
    grpc: str
    folder: Path
    x: Array
    right: Array

    @property
    def http(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def binary(self) -> list[Request]:
        found = []
        for k in range(INPUTS):
            body, length = encode_request({"image": self.x[k : k + 1]})
            found.append(Request(b"POST", PATH, ((_LENGTH, b"%d" % length), (b"Garrison-Nonce", b"n%d" % k)), body))
        return found

    def in_json(self) -> list[Request]:
        bodies = [encode_request({"image": self.x[k : k + 1]}, binary=False)[0] for k in range(INPUTS)]
        return [Request(b"POST", PATH, ((b"Content-Type", b"application/json"),), body) for body in bodies]

    def others(self) -> list[Request]:
        """What else is asked of a server."""
        paths = (
            *(b"/v2", b"/v2/health/ready", b"/v2/models/mlp", b"/v2/models/mlp/versions/1/ready", b"/openapi.json"),
            *(b"/.well-known/garrison/keys", b"/.well-known/garrison/attestation?nonce=" + b"A" * 43),
        )
        pages = [Request(b"GET", path, (), b"") for path in paths]
        letter = b"\x01" + self.x[:1].tobytes()
        sealed = Request(b"POST", PATH, ((b"Content-Type", b"application/vnd.garrison.sealed"),), letter)
        return [*pages, sealed, Request(b"POST", b"/v2/repository/index", (), b'{"ready":true}')]

    def messages(self) -> list[bytes]:
        """Over gRPC."""
        found = []
        for k in range(INPUTS):
            one = self.x[k : k + 1]
            tensor = string(_TENSOR_NAME, "image") + string(_DATATYPE, "FP32") + packed(_SHAPE, one.shape)
            named = string(_NAME, "mlp") + string(_VERSION, "1")
            found.append(named + field(_INPUT, tensor) + field(_RAW, one.tobytes()))
        return found

    def is_right_binary(self, number: int, body: bytes) -> bool:
        """Whether the last bytes are the right tensor, for binary HTTP and gRPC."""
        size = self.right[0].nbytes
        return len(body) >= size and self._close(number, np.frombuffer(body[-size:], np.float32))

    def is_right_json(self, number: int, body: bytes) -> bool:
        return self._close(number, np.array(json.loads(body)["outputs"][0]["data"], np.float32).ravel())

    def is_right(self, number: int, body: bytes) -> bool:
        """Binary requests come first, then as many in JSON."""
        return self.is_right_binary(number, body) if number < INPUTS else self.is_right_json(number - INPUTS, body)

    def _close(self, number: int, found: Array) -> bool:
        return found.shape == self.right[number].shape and np.allclose(found, self.right[number], atol=TOLERANCE)


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start the server; afterwards it must end in good order.

    Raises:
        RuntimeError: it does not.
    """
    sealed = seal_mlp(folder / "mlp", chain=(BOUNDS, budget(NEVER_REACHED), RELEASE))
    (folder / "owner.pub").write_bytes(sealed.owner.public.pem)
    x = images(INPUTS, seed=8)
    (reply,) = launch("none", Launch(sealed.path, [sealed.owner.public])).call(
        [Ask("caller", -1, *encode_request({"image": x}))]
    )
    right = np.frombuffer(reply.body[-4 * CLASSES * INPUTS :], np.float32).reshape(INPUTS, CLASSES)
    words = [
        sys.executable,
        "-m",
        "garrison",
        "serve",
        str(sealed.path),
        "--trust",
        str(folder / "owner.pub"),
        "--json",
    ]
    words += ["--port", "0", "--grpc-port", "0", "--isolation", "process", "--state", str(folder / "state")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*words, "--ledger", str(folder / "ledger")], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        said = ""
        while not said.endswith("\n}\n"):
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()}")
            said += line
        ready = json.loads(said)
        yield World(server.pid, ready["url"], ready["grpc"], folder, x, right)
        server.send_signal(signal.SIGTERM)
        if server.wait(60):
            raise RuntimeError(f"the server ended with code {server.returncode}")
    finally:
        server.kill()
        server.communicate()
