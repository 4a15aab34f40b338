"""Finds out at sealing whether a model can be run in segments, with parameters that come on demand.

The cut itself is made where the model runs, because the runtime's full optimisation depends on the processor (see
`garrison.runtime.segments`). What is sealed is the finding: a model that cannot be cut is run whole, and its manifest says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from garrison.runtime.on_demand import Memory
from garrison.runtime.segments import WholeError, cut, optimise
from garrison.runtime.store import Budget, OutsideMemory, VerifiedStore
from garrison.sealing.parameters import Chunk
from garrison.types import Array

TOLERANCE = 1e-3
"""Relative to the answer's scale; what is looked for is a wrong answer, not rounding."""
_MOST_ROWS = 4


def why_whole(graph: bytes, chunks: Sequence[Chunk], rows: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
    """Why a graph must be run whole; "" where it can be run in segments.

    Args:
        graph, chunks: from `garrison.sealing.parameters.split`.
        rows: a few inputs.
        expected: by output, what the original answers to them.
    """
    files = {chunk.file: chunk.data for chunk in chunks}
    outputs = list(expected)
    try:
        pieces = cut(optimise(graph, files), outputs)
    except WholeError as error:
        return str(error)
    budget = Budget(pieces.kept_bytes + max(pieces.sizes))
    (network,) = Memory([pieces], budget, VerifiedStore(OutsideMemory())).networks([pieces], [outputs])
    found = network.run(outputs, {name: np.ascontiguousarray(x[:_MOST_ROWS]) for name, x in rows.items()})
    for value, name in zip(found, outputs, strict=True):
        wanted = expected[name][:_MOST_ROWS]
        scale = max(1.0, float(np.max(np.abs(wanted[np.isfinite(wanted)]), initial=0.0)))
        if not np.allclose(value, wanted, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
            return f"in segments it does not answer as it does whole (output {name!r})"
    return ""
