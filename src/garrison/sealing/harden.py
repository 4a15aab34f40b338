"""Hardens a model of any format that can be sealed: made into a graph, compared with the original, then hardened as a graph.

result = harden_source(read_source(Path("model.ubj")), data, options=Options(benign_loss=0.01))
write_hardened(Path("HARDENED"), result.description, result.model, result.misinformation)
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from garrison.errors import UnsupportedModelError
from garrison.hardening.data import Rows, for_model
from garrison.hardening.graphs import graph_inputs, normalise_outputs
from garrison.hardening.harden import SAMPLE_ROWS, Options, Result, harden
from garrison.hardening.scoring import Report, open_session, score, silent
from garrison.sealing.formats.source import Source, check_against_reference

SOURCE_ROLE = "model file"
"""Under this name the digest of the file as given stands among the digests of the data."""


def harden_source(
    source: Source,
    data: Rows,
    calibration: Rows | None = None,
    outliers: Rows | None = None,
    options: Options | None = None,
    report: Report = silent,
) -> Result:
    """See `garrison.hardening.harden.harden`; the arguments are the same, but for the model.

    Raises:
        UnsupportedModelError: the graph does not answer like the original, or the model gives no probabilities.
    """
    options = options or Options()
    if source.declared in {"values", "scores"} and options.output == "auto":
        raise UnsupportedModelError(
            f"hardening needs probabilities; this {source.format} model answers {source.declared}, and is sealed as it is"
        )
    _compare(source, data if calibration is None else calibration, options)
    labels = options.labels or source.labels or None
    declared = source.declared if options.output == "auto" else options.output
    chosen = replace(options, output=declared, labels=labels)
    result = harden(source.model, data, calibration, outliers, chosen, report)
    digests = result.description.data_sha256 | {SOURCE_ROLE: source.sha256}
    return replace(result, description=msgspec.structs.replace(result.description, data_sha256=digests))


def _compare(source: Source, rows: Rows, options: Options) -> None:
    """The graph with the original, where there is one to ask."""
    if source.reference is None or options.output != "auto":
        return
    inputs = for_model(rows, graph_inputs(source.model))
    sample = {name: x[:SAMPLE_ROWS] for name, x in inputs.items()}
    model, _ = normalise_outputs(source.model, source.declared, sample)
    found = score(open_session(model.SerializeToString(), options.threads), inputs, ["probabilities"])
    check_against_reference(source, inputs, found["probabilities"])
