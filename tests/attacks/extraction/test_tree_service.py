"""The tree behind a service that answers at inner nodes: the same as scikit-learn on whole rows, the node's own answer on others."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier
from tests.attacks.extraction.trees import German, german, tree_service

from garrison.attacks.extraction.tree_service import Columns


@pytest.fixture(scope="module")
def credit() -> German:
    return german()


def test_whole_rows_are_answered_as_scikit_learn_does(credit: German) -> None:
    target = tree_service(credit, 26, categories=True)
    columns = Columns(20, credit.categories)
    model = DecisionTreeClassifier(max_leaf_nodes=26, random_state=0).fit(columns.encoded(credit.x), credit.y)
    found = target.query(credit.x).probabilities
    assert found is not None
    assert np.abs(found - model.predict_proba(columns.encoded(credit.x))).max() < 1e-6
    assert target.leaves == 26


def test_categories_become_a_column_a_value(credit: German) -> None:
    columns = Columns(20, credit.categories)
    i = next(iter(credit.categories))
    own = columns.encoded(credit.x)[:, columns.feature == i]
    assert (own == OneHotEncoder(sparse_output=False).fit_transform(credit.x[:, [i]])).all()


def test_a_missing_feature_ends_at_the_node_that_tests_it(credit: German) -> None:
    target = tree_service(credit, 26, categories=False)
    nothing = np.full((1, 20), np.nan, dtype=np.float32)
    assert target.nodes(nothing)[0] == 0
    share = np.bincount(credit.y.astype(np.int64)) / len(credit.y)
    found = target.query(nothing).probabilities
    assert found is not None
    assert np.abs(found[0] - share).max() < 1e-6
    alone = nothing.copy()
    alone[0, target.tree.feature[0]] = target.tree.threshold[0] + 1
    assert target.nodes(alone)[0] == target.tree.children_right[0]
