"""A small server that speaks Open Inference Protocol v2 as NVIDIA's Triton documents it, binary tensor data and model configuration among
its extensions. For tests: one model, computed by ONNX Runtime."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import onnxruntime as ort

from garrison.types import DATATYPES, NUMPY_DTYPES, Array

HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ["classification", "binary_tensor_data", "model_configuration"]


@dataclass
class Triton:
    """What it serves, and what it was asked.

    Attributes:
        row: shape of one row.
        most_rows: `max_batch_size`; 0 for a model without a dimension for rows.
        output: the tensor that it answers with.
        change: what becomes of an answer on its way: (status, headers, body) in and out.
        drop: whether to end the connection in place of an answer to this body.
        asked: rows of each inference request.
    """

    run: Callable[[Array], Array]
    row: tuple[int, ...]
    classes: int
    name: str = "digits"
    input: str = "image"
    output: str = "probabilities"
    most_rows: int = 8
    extensions: list[str] = field(default_factory=lambda: list(EXTENSIONS))
    change: Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]] | None = None
    drop: Callable[[bytes], bool] | None = None
    asked: list[int] = field(default_factory=list)
    url: str = ""

    def page(self, path: str) -> Any:
        mine = f"/v2/models/{self.name}"
        rows = [-1] if self.most_rows else []
        tensors = {
            "inputs": [{"name": self.input, "datatype": "FP32", "shape": [*rows, *self.row]}],
            "outputs": [{"name": self.output, "datatype": "FP32", "shape": [*rows, self.classes]}],
        }
        pages: dict[str, Any] = {"/v2": {"name": "triton", "version": "2.60.0", "extensions": self.extensions}}
        for prefix in (mine, f"{mine}/versions/1"):
            pages[prefix] = {"name": self.name, "versions": ["1"], "platform": "onnxruntime_onnx", **tensors}
            pages[f"{prefix}/config"] = {"name": self.name, "max_batch_size": self.most_rows}
            pages[f"{prefix}/ready"] = {}
        return pages.get(path)

    def infer(self, head: bytes, rest: bytes) -> tuple[int, dict[str, str], bytes]:
        message = json.loads(head)
        (tensor,) = message["inputs"]
        shape, dtype = tensor["shape"], NUMPY_DTYPES[tensor["datatype"]]
        if "binary_data_size" in tensor.get("parameters", {}):
            x = np.frombuffer(rest[: tensor["parameters"]["binary_data_size"]], dtype).reshape(shape)
        else:
            x = np.array(tensor["data"], dtype).reshape(shape)
        self.asked.append(len(x) if self.most_rows else 1)
        if self.most_rows and len(x) > self.most_rows:
            return _error(400, f"batch-size {len(x)} exceeds maximum {self.most_rows}")
        try:
            values = self.run(x if self.most_rows else x[None])
        except ValueError as error:
            return _error(400, str(error))
        values = values if self.most_rows else values[0]
        answer: dict[str, Any] = {"name": self.output, "datatype": DATATYPES[values.dtype], "shape": values.shape}
        said = {"model_name": self.name, "model_version": "1", "outputs": [answer]}
        if "id" in message:
            said["id"] = message["id"]
        if message.get("parameters", {}).get("binary_data_output"):
            answer["parameters"] = {"binary_data_size": values.nbytes}
            head = json.dumps(said).encode()
            return 200, {HEADER: str(len(head)), "Content-Type": "application/octet-stream"}, head + values.tobytes()
        answer["data"] = values.ravel().tolist()
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()


def _error(status: int, says: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps({"error": says}).encode()


def _handler(triton: Triton) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            page = triton.page(self.path)
            if page is None:
                self._send(*_error(404, "not found"))
            else:
                self._send(200, {"Content-Type": "application/json"}, json.dumps(page).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers.get(HEADER, len(body)))
            paths = {f"/v2/models/{triton.name}/infer", f"/v2/models/{triton.name}/versions/1/infer"}
            if self.path in paths and triton.drop is not None and triton.drop(body):
                self.close_connection = True
                return
            if self.path in paths:
                status, headers, said = triton.infer(body[:length], body[length:])
            else:
                status, headers, said = _error(404, "not found")
            if triton.change is not None:
                status, headers, said = triton.change(status, headers, said)
            self._send(status, headers, said)

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *more: Any) -> None:
        super().__init__(*more)
        self.streams: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.streams.append(request)
        super().process_request(request, client_address)

    def end_connections(self) -> None:
        for stream in self.streams:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that clients end are no news."""


@contextmanager
def serving(triton: Triton, port: int = 0) -> Iterator[Triton]:
    """The server in a thread."""
    server = _Server(("127.0.0.1", port), _handler(triton))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    triton.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield triton
    finally:
        server.shutdown()
        server.server_close()
        server.end_connections()
        thread.join()


def onnx_triton(model: bytes, row: tuple[int, ...], classes: int, **more: Any) -> Triton:
    """A server for an ONNX model with the input `image` and the output `probabilities`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Triton(lambda x: session.run([more.get("output", "probabilities")], {"image": x})[0], row, classes, **more)
