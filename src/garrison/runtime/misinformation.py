"""Runs f' alone, for a bundle whose model is computed elsewhere."""

from __future__ import annotations

import numpy as np

from garrison.bundle.manifest import GraphEntry
from garrison.bundle.reader import VerifiedBundle
from garrison.runtime.session import check_signature, open_graph
from garrison.types import Array, FloatArray

OUTPUT = "misinformation"


class Misinformation:
    """The graph of f' in one session.

    Args:
        bundle: a verified bundle.
        graph: its entry for f'.
        slice_rows: most rows in one run of the runtime, which bounds memory.

    Raises:
        ManifestError: the graph cannot be loaded, or is not what the manifest says.
    """

    def __init__(self, bundle: VerifiedBundle, graph: GraphEntry, slice_rows: int = 256) -> None:
        self._session = open_graph(bundle, graph)
        self._slice = slice_rows
        check_signature(self._session, graph, bundle.manifest.inputs)

    def run(self, inputs: dict[str, Array]) -> FloatArray:
        """The logarithm of f'(x), shape (rows, classes), for inputs by name, each (rows, ...)."""
        rows = len(next(iter(inputs.values())))
        starts = range(0, rows, self._slice)
        parts = [self._session.run([OUTPUT], {n: x[i : i + self._slice] for n, x in inputs.items()})[0] for i in starts]
        found: FloatArray = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found
