"""ONNX Runtime alone: processor time of an image, by batch.

python -m benchmarks.serving.bare_runtime MODEL.onnx 1 32
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime as ort

SECONDS = 0.3


def microseconds(session: ort.InferenceSession, batch: int) -> float:
    """Processor time of one image in a batch of so many."""
    shape = [batch, *session.get_inputs()[0].shape[1:]]
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    end, runs = time.perf_counter() + SECONDS / 3, 0
    while time.perf_counter() < end:
        session.run(["probabilities"], {"x": x})
    began, end = time.process_time(), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        session.run(["probabilities"], {"x": x})
        runs += 1
    return (time.process_time() - began) / runs / batch * 1e6


def main() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    print(json.dumps({batch: microseconds(session, int(batch)) for batch in sys.argv[2:]}))


if __name__ == "__main__":
    main()
