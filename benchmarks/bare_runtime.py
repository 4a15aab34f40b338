"""What the machine is worth: the runtime alone, on the LeNet-size model at batch 32."""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.serving import figures

ROWS = 32
REFERENCE_US = figures.REFERENCE_US[ROWS]
"""Microseconds an image on the machine that the bounds were set for."""


def runtime_us(model: onnx.ModelProto) -> float:
    """Microseconds an image here, of the model that `garrison harden` makes of Fashion-MNIST's."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((ROWS, 1, 28, 28), dtype=np.float32)
    found = []
    for _ in range(40):
        begun = time.process_time()
        for _ in range(5):
            session.run(["probabilities"], {"image": x})
        found.append((time.process_time() - begun) / (5 * ROWS) * 1e6)
    return statistics.median(found)
