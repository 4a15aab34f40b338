"""Models in memory that are none, or that know more than their library's file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.sealing.formats.test_boosted import fit, german

from garrison.errors import UnsupportedModelError
from garrison.sealing.formats.objects import source_of
from garrison.sealing.inputs import rows_from_arrays

lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")
torch = pytest.importorskip("torch")
X, Y, _ = german()
ROWS = rows_from_arrays({"x": X[:50]})


@pytest.mark.parametrize(
    "model",
    [
        xgboost.XGBClassifier(),
        xgboost.Booster(),
        lightgbm.LGBMClassifier(),
        lightgbm.Dataset(X),
        xgboost.DMatrix(X[:5]),
        torch.zeros(3),
        xgboost.XGBClassifier,
        None,
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_no_fitted_model_is_told(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="found"):
        source_of(model, ROWS)


def test_the_names_of_an_estimators_classes_are_kept() -> None:
    """LightGBM's file numbers them, so that a service would call a "good" customer "1"."""
    few: dict[str, Any] = {"n_estimators": 2, "n_jobs": 1, "verbosity": -1}
    for names in (np.array(["bad", "good"]), np.array([3, 8])):
        model = fit(lightgbm.LGBMClassifier(**few), X, names[Y.astype(int)])
        assert source_of(model, ROWS).labels == tuple(map(str, names))
        assert source_of(model.booster_, ROWS).labels == (), "the booster does not know them"
    assert source_of(fit(xgboost.XGBClassifier(n_estimators=2, n_jobs=1), X, Y), ROWS).labels == ("0", "1")
    assert source_of(fit(lightgbm.LGBMRegressor(**few), X, X[:, 0]), ROWS).labels == ()
