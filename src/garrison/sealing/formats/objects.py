"""Models that are in memory: fitted estimators and boosters, PyTorch modules, ONNX graphs.

They are told apart by the modules of their classes, so that no library is loaded that is not there already.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import tempfile
from pathlib import Path
from typing import Any

from garrison.errors import MissingExtraError, UnsupportedModelError
from garrison.hardening.data import Rows
from garrison.hardening.graphs import check_model
from garrison.sealing.formats import read_source
from garrison.sealing.formats.source import Source

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

_EXAMPLE_ROWS = 2
_SAVED = {"xgboost": ".ubj", "lightgbm": ".txt"}


def source_of(model: Any, rows: Rows, *, double: bool = False) -> Source:
    """A model as a `Source`.

    Args:
        model: the path of a file; a fitted estimator of scikit-learn; an estimator or booster of XGBoost or LightGBM; a module of
            PyTorch that takes one positional tensor an input and gives one tensor; or an ONNX graph.
        rows: of which a PyTorch module is shown two.
        double: see `garrison.sealing.formats.read_source`.

    Raises:
        SealingError: it cannot be read, or is nothing of all that.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, str | Path):
        return read_source(Path(model), double=double)
    if isinstance(model, onnx.ModelProto):
        digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        return Source(model=check_model(model, "the given graph"), format="onnx", sha256=digest, packages=("onnx",))
    families = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    for family, suffix in _SAVED.items():
        if family in families:
            return _saved(model, suffix, double=double)
    if "sklearn" in families:
        found: Source = importlib.import_module("garrison.sealing.formats.sklearn").convert(model, double=double)
        return found
    if "torch" in families and hasattr(model, "parameters"):
        return _module(model, rows)
    raise UnsupportedModelError(
        f"expected a file, an estimator, a booster, a PyTorch module or an ONNX graph, found {type(model).__name__}"
    )


def _saved(model: Any, suffix: str, *, double: bool) -> Source:
    """Through the library's own file, as it would come from elsewhere. The file does not know what an estimator calls its classes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        try:
            getattr(model, "booster_", model).save_model(path)
        except Exception as error:
            raise UnsupportedModelError(
                f"expected a fitted estimator or booster, found a {type(model).__name__} that cannot be saved "
                f"({type(error).__name__})"
            ) from error
        found = read_source(path, double=double)
    classes = getattr(model, "classes_", None)
    if found.declared != "probabilities" or classes is None:
        return found
    return dataclasses.replace(found, labels=tuple(str(label) for label in classes))


def _module(model: Any, rows: Rows) -> Source:
    torch = importlib.import_module("torch")
    example = [torch.as_tensor(x[:_EXAMPLE_ROWS]) for x in rows.inputs.values()]
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if kind is not None:
        example = [x.to(kind) if x.is_floating_point() else x for x in example]
    convert = importlib.import_module("garrison.sealing.formats.torch").convert
    found: Source = convert(model, example, names=tuple(rows.inputs))
    return found
