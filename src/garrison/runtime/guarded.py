"""The guarded graph of a bundle: which it is, and what it is fed with."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from garrison.bundle.manifest import GuardedGraph, asked
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import ManifestError
from garrison.types import Array


class Guarded:
    """The traced guard of one bundle: which graph, fed with what.

    Attributes:
        entry: the guarded graph, with the model's parameters.
        inputs: its inputs beside the settings.
        asked: their names, by those of the model's.
        every_output: its outputs.
        outputs: those that a guarded batch needs.
        settings: the numbers that it takes.

    Raises:
        ManifestError: a setting that the chain does not give.
    """

    def __init__(self, bundle: VerifiedBundle, guarded: GuardedGraph, settings: Mapping[str, Array]) -> None:
        missing = sorted(set(guarded.settings) - settings.keys())
        if missing:
            raise ManifestError(f"the guarded graph takes {missing[0]!r}, which the chain does not give")
        manifest = bundle.manifest
        self.entry = msgspec.structs.replace(guarded.graph, chunks=manifest.graph.chunks)
        self.inputs = tuple(msgspec.structs.replace(spec, name=asked(spec.name)) for spec in manifest.inputs)
        self.asked = {spec.name: asked(spec.name) for spec in manifest.inputs}
        self.settings = {name: settings[name] for name in guarded.settings}
        self.every_output = list(guarded.graph.outputs)
        spare = set(manifest.graph.outputs) - set(guarded.drawn_from)
        self.outputs = [name for name in self.every_output if name not in spare]
