"""Scores rows for a guard-only bundle: f(x) from another server, f' from the bundle.

Invariant: nothing is released that was computed before the server was seen to describe its model as it did when the guard was made. This is
looked at again whenever a connection was opened, since another server may be at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from garrison.bundle.manifest import UpstreamEntry
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import ConfigError, UnavailableError, UpstreamError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.runtime.misinformation import Misinformation
from garrison.types import NUMPY_DTYPES, Array, FloatArray, RawScores
from garrison.upstream.connection import NEVER, WaitingError
from garrison.upstream.http import connect
from garrison.upstream.model import Begun, UpstreamModel, describe, is_ready, softmax
from garrison.upstream.target import Target

logger = logging.getLogger(__name__)

READY_SECONDS = 1.0


class UpstreamScorer:
    """See the module's docstring. Safe to use from several threads.

    Args:
        bundle: a verified guard-only bundle.
        target: where its model runs.
        limits: the `upstream_` ones count here.

    Attributes:
        reachable: whether the server answered when it was last asked.
        until: by `time.monotonic`, when `run` is to stop waiting for now. To be set by who calls `run`, one at a time.

    Raises:
        ConfigError: the bundle holds a model of its own, or the target cannot be used.
        ManifestError: the graph of f' cannot be loaded.
        UpstreamError: the server runs another model than the guard was made for.
    """

    def __init__(self, bundle: VerifiedBundle, target: Target, limits: Limits = DEFAULT_LIMITS) -> None:
        manifest = bundle.manifest
        if manifest.upstream is None:
            raise ConfigError(
                f"the bundle of {manifest.name!r} holds its model: `garrison serve` runs it, and no other server is asked"
            )
        self.entry: UpstreamEntry = manifest.upstream
        self.reachable = True
        self._limits = limits
        self._wrong = None if manifest.misinformation is None else Misinformation(bundle, manifest.misinformation)
        self._connections = connect(target, limits)
        self._model = UpstreamModel(
            self._connections,
            self.entry,
            outputs=manifest.outputs,
            datatype=NUMPY_DTYPES[manifest.output_datatype],
            binary=False,
            seconds=limits.upstream_seconds,
        )
        self._agreed = -1
        self.until = NEVER
        self._left: tuple[dict[str, Array], Begun] | None = None
        try:
            self._agree(limits.upstream_seconds)
        except UnavailableError as error:
            self.reachable = False
            logger.warning("%s: %s; starting without it", target.url, error)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: dict[str, Array]) -> RawScores:
        """Score rows.

        Args:
            inputs: by name, each (rows, ...) in the manifest's dtype and shape; at least one row.

        Raises:
            WaitingError: not by `until`. Whoever asks for the same rows next gets the answer that is on its way.
            UnavailableError: the server cannot answer now.
            UpstreamError: it gave no answer that can be used, or runs another model.
        """
        try:
            if self._agreed < 0:
                self._agree(self._limits.upstream_seconds)
            values = self._ask(inputs)
            if self._agreed != self._connections.opened:
                self._agree(self._limits.upstream_seconds)
        except UnavailableError:
            self.reachable = False
            raise
        self.reachable = True
        logits = None
        if self.entry.gives == "logits":
            logits, values = values, softmax(values)
        return RawScores(values, logits, self._misinformation(inputs))

    def _ask(self, inputs: dict[str, Array]) -> FloatArray:
        begun = None if self._left is None else self._left_over(inputs, *self._left)
        if begun is None:
            begun = self._model.begin(inputs)
        if begun is None:
            return self._model.ask(inputs)
        try:
            return self._model.finish(begun, self.until)
        except WaitingError:
            self._left = inputs, begun
            raise

    def _left_over(self, inputs: dict[str, Array], rows: dict[str, Array], begun: Begun) -> Begun | None:
        """The question that is under way, where it is this one."""
        self._left = None
        if all(rows[name].tobytes() == x.tobytes() for name, x in inputs.items()):
            return begun
        begun.asked.close()
        return None

    def probe(self) -> None:
        """See whether a server that was away is back; waits for a second at most."""
        if not self.reachable:
            self.reachable = is_ready(self._connections, self.entry.model, self.entry.version, READY_SECONDS)

    def close(self) -> None:
        self._connections.close()

    def _agree(self, seconds: float) -> None:
        found = describe(self._connections, self.entry.model, self.entry.version, seconds)
        if found.sha256 != self.entry.metadata_sha256 or found.digest != self.entry.digest:
            self._agreed = -1
            raise UpstreamError(
                f"the model's server describes {self.entry} otherwise than when this guard was made: harden and seal again"
            )
        self._model.binary = found.binary
        self._agreed = self._connections.opened

    def _misinformation(self, inputs: dict[str, Array]) -> Callable[[npt.NDArray[np.intp]], FloatArray] | None:
        wrong = self._wrong
        if wrong is None:
            return None
        return lambda rows: wrong.run({name: x[rows] for name, x in inputs.items()})
