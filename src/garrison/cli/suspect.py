"""A model file of somebody else's, asked like a service."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from garrison.attacks.oracle import Answers, OracleFacts
from garrison.audit.ownership.owner import fitted
from garrison.errors import UnsupportedModelError
from garrison.hardening.graphs import Declared, graph_inputs, normalise_outputs
from garrison.hardening.scoring import open_session, score
from garrison.runtime.runner import VALUES_OUTPUT
from garrison.sealing.formats import read_source
from garrison.types import NUMPY_DTYPES, Array, Task

_SAMPLE_ROWS = 8


class FileTarget:
    """A model file as an oracle. Whatever orders the classes will do: probabilities, logits, scores.

    Args:
        path: a file that `garrison seal` takes.
        sample: a few rows, in any shape of the right size.
        output: what the file answers.

    Raises:
        ModelFileError, UnsupportedModelError: it cannot be read or run.
    """

    def __init__(self, path: Path, sample: Array, output: Declared = "auto") -> None:
        source = read_source(path)
        inputs = graph_inputs(source.model)
        if len(inputs) != 1:
            raise UnsupportedModelError(f"{path}: takes {len(inputs)} input tensors, expected one")
        ((self._input, (datatype, wanted)),) = inputs.items()
        shape = tuple(sample.shape[1:]) if None in wanted else tuple(n for n in wanted if n is not None)
        few = {self._input: fitted(sample[:_SAMPLE_ROWS], shape, NUMPY_DTYPES[datatype])}
        model, self._task = normalise_outputs(source.model, source.declared if output == "auto" else output, few)
        self._session = open_session(model.SerializeToString())
        self._name = VALUES_OUTPUT[self._task]
        self.facts = OracleFacts(
            shape=shape,
            dtype=NUMPY_DTYPES[datatype],
            low=np.array(-np.inf),
            high=np.array(np.inf),
            classes=score(self._session, few, [self._name])[self._name].shape[1],
            soft=self._task is Task.CLASSIFICATION,
            scores=self._task is Task.SCORES,
            regression=self._task is Task.REGRESSION,
        )

    def query(self, x: Array) -> Answers:
        """See `garrison.attacks.oracle.Oracle`."""
        values = score(self._session, {self._input: x}, [self._name])[self._name]
        nobody = np.zeros(len(x), dtype=np.bool_)
        labels = values.argmax(axis=1).astype(np.int64)
        if self._task is Task.CLASSIFICATION:
            return Answers(labels, values, nobody, nobody)
        return Answers(labels, None, nobody, nobody, values.astype(np.float64))
