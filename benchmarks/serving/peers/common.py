"""What the peers share: the model's session, and the tensors' bytes. Knows neither Garrison nor any peer."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Body:
    """One request: what follows the URL, headers beside the length, and the body."""

    path: str
    headers: dict[str, str]
    content: bytes


class Model:
    """The ONNX file at `path`, on one thread."""

    def __init__(self, path: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.shape = [1, *self._session.get_inputs()[0].shape[1:]]

    def run(self, x: Array) -> Array:
        found: Array = self._session.run(["probabilities"], {"x": x})[0]
        return found

    def run_bytes(self, data: bytes) -> bytes:
        """One row in, its probabilities out, both as little-endian float32."""
        return self.run(np.frombuffer(data, np.float32).reshape(self.shape)).tobytes()

    def run_text(self, data: str) -> list[float]:
        """The same, from base64 to a list of numbers."""
        values: list[float] = self.run(np.frombuffer(base64.b64decode(data), np.float32).reshape(self.shape))[
            0
        ].tolist()
        return values


def octets(path: str, x: Array) -> Body:
    return Body(path, {"Content-Type": OCTETS}, x.tobytes())


def base64_json(path: str, x: Array) -> Body:
    content = json.dumps({"x": base64.b64encode(x.tobytes()).decode()}).encode()
    return Body(path, {"Content-Type": "application/json"}, content)


def from_octets(answer: bytes) -> Array:
    return np.frombuffer(answer, np.float32)


def from_json(answer: bytes) -> Array:
    """A list of numbers, however deep it lies."""
    found: Any = json.loads(answer)
    while isinstance(found, dict):
        found = next(iter(found.values()))
    return np.array(found, np.float32).ravel()
