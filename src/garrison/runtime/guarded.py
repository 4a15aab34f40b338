"""The guarded graph and the late one of a bundle: which they are, and what they are fed with."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from garrison.bundle.manifest import GuardedGraphs, asked
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import ManifestError
from garrison.runtime.session import open_graph
from garrison.types import Array


class Guarded:
    """The traced guard of one bundle: which graphs, fed with what.

    Attributes:
        entry: the guarded graph, with the model's parameters.
        inputs: its inputs beside the settings.
        every_output: its outputs.
        outputs: those that a guarded batch needs.
        settings, late_settings: the numbers that each graph takes.
        late, late_takes, late_outputs: the late graph's session (None without one), its inputs and outputs.

    Raises:
        ManifestError: a setting that the chain does not give, or a late graph that the runtime does not take.
    """

    def __init__(self, bundle: VerifiedBundle, graphs: GuardedGraphs, settings: Mapping[str, Array]) -> None:
        missing = sorted({*graphs.settings, *graphs.late_settings} - settings.keys())
        if missing:
            raise ManifestError(f"the guarded graph takes {missing[0]!r}, which the chain does not give")
        manifest = bundle.manifest
        self.entry = msgspec.structs.replace(graphs.graph, chunks=manifest.graph.chunks)
        self.inputs = tuple(msgspec.structs.replace(spec, name=asked(spec.name)) for spec in manifest.inputs)
        self.settings = {name: settings[name] for name in graphs.settings}
        self.late_settings = {name: settings[name] for name in graphs.late_settings}
        self.late = None if graphs.late is None else open_graph(bundle, graphs.late)
        self.late_takes = frozenset() if self.late is None else frozenset(i.name for i in self.late.get_inputs())
        self.late_outputs = [] if graphs.late is None else list(graphs.late.outputs)
        self.every_output = list(graphs.graph.outputs)
        spare = set(manifest.graph.outputs) - self.late_takes
        self.outputs = [name for name in self.every_output if name not in spare]
