"""Converts PyTorch modules, and reads .pt2 files (torch.export.save).

PyTorch's own loader unpickles parts of a .pt2 file and evaluates texts in it, so a file is first taken apart and checked against a list
of what is allowed (`garrison.sealing.formats.pt2`); only a new archive made of what passed is given to PyTorch.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from garrison.hardening.graphs import Declared, check_model
from garrison.sealing.formats.pt2 import cleaned
from garrison.sealing.formats.source import Source
from garrison.types import Array

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "torch") from error

PACKAGES = ("torch", "onnxscript", "onnx")


def read(path: Path) -> Source:
    """An exported program. Its batch dimension must have been exported as dynamic.

    Raises:
        ModelFileError: not a .pt2 file, or one that cannot be loaded.
        UnsupportedModelError: it holds something that would run code when it is read, or cannot be converted.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    archive = cleaned(data, str(path))
    try:
        with _quiet():
            program = torch.export.load(io.BytesIO(archive))
    except Exception as error:
        raise ModelFileError(f"{path}: PyTorch cannot load it: {type(error).__name__}: {str(error)[:200]}") from error
    names = [str(name) for name in program.graph_signature.user_inputs]
    model = _export(program, (), names, None, str(path))
    return _source(model, program.module(), names, hashlib.sha256(data).hexdigest())


def convert(
    module: torch.nn.Module,
    example: Sequence[torch.Tensor],
    *,
    names: Sequence[str] = ("x",),
    declared: Declared = "auto",
) -> Source:
    """A module as an ONNX graph; it is put into evaluation mode.

    Args:
        module: takes one positional tensor an input, each (rows, ...), and gives one tensor (rows, k).
        example: inputs of at least two rows.
        names: of the inputs.
        declared: what the answer means.

    Raises:
        UnsupportedModelError: it cannot be converted.
    """
    if len(names) != len(example) or any(x.ndim == 0 or x.shape[0] < 2 for x in example):
        raise UnsupportedModelError("expected one name for each example input, and examples of at least two rows")
    module.eval()
    dynamic = tuple({0: torch.export.Dim("rows")} for _ in example)
    model = _export(module, tuple(example), list(names), dynamic, type(module).__name__)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return _source(model, module, list(names), digest, declared)


def _export(what: Any, example: tuple[torch.Tensor, ...], names: list[str], dynamic: Any, label: str) -> Any:
    try:
        with _quiet():
            program = torch.onnx.export(
                what,
                example,
                dynamo=True,
                input_names=names,
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise UnsupportedModelError(f"{label}: PyTorch cannot export it to ONNX: {reason}") from error
    if program is None:
        raise UnsupportedModelError(f"{label}: PyTorch exported nothing")
    return check_model(program.model_proto, label)


def _source(model: Any, module: Any, names: list[str], sha256: str, declared: Declared = "auto") -> Source:
    def reference(rows: dict[str, Array]) -> Array:
        with torch.no_grad():
            found = module(*(torch.from_numpy(np.ascontiguousarray(rows[name])) for name in names))
        first = found[0] if isinstance(found, (tuple, list)) else found
        array: Array = first.reshape(len(first), -1).numpy().astype(np.float64)
        return array

    return Source(
        model=model,
        format="torch",
        sha256=sha256,
        declared=declared,
        reference=reference,
        packages=PACKAGES,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of its own deprecations and of packages that are not needed."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
