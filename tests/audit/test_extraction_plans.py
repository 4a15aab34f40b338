"""`--plan extraction-quick`, and for a tree `extraction`, on models of a user's own, as sealed by the ordinary commands: the thief gets them whole."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier
from tests.commands import run

from garrison import datasets

pytestmark = pytest.mark.slow


def audited(
    model: Any, x: Any, y: Any, folder: Path, *options: str, plan: str = "extraction-quick"
) -> tuple[dict[str, Any], float]:
    """Seal the model, audit the bundle; the report, and the processor time of the audit."""
    skops.io.dump(model.fit(x, y), folder / "m.skops")
    np.savez(folder / "rows.npz", x=x, y=y)
    assert run("keygen", "-o", str(folder / "o")).exit_code == 0
    sealing = ["--data", str(folder / "rows.npz"), "--key", str(folder / "o.key"), "-o", str(folder / "b")]
    sealed = run("seal", str(folder / "m.skops"), *sealing)
    assert sealed.exit_code == 0, sealed.output
    begun = time.process_time()
    trust = ["--trust", str(folder / "o.pub"), "-o", str(folder / "r")]
    result = run("audit", str(folder / "b"), "--plan", plan, *options, *trust)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "r" / "report.json").read_text()), time.process_time() - begun


def best(report: dict[str, Any], metric: str) -> dict[str, Any]:
    found = [f for f in report["findings"] if (f["target"], f["metric"]) == ("defended", metric)]
    return max(found, key=lambda f: f["value"] or 0.0)


def test_a_linear_model_is_solved_in_a_minute(tmp_path: Path) -> None:
    digits = datasets.load("digits")
    report, seconds = audited(LogisticRegression(max_iter=500), digits.x / 16.0, digits.y, tmp_path)
    found = best(report, "fidelity")
    assert (found["value"], found["queries"], found["attack"]) == (1.0, 65, "equation-solving")
    assert best(report, "uniform_fidelity")["value"] > 0.999
    assert seconds < 60
    assert any("has the model already" in item["why"] for item in report["left_out"])


def test_a_tree_is_found_whole_in_a_minute(tmp_path: Path) -> None:
    german = datasets.load("german-credit")
    tree = DecisionTreeClassifier(max_leaf_nodes=26, random_state=0)
    report, seconds = audited(tree, np.nan_to_num(german.x), german.y, tmp_path)
    found = best(report, "uniform_fidelity")
    assert found["attack"].startswith("path-finding")
    assert found["value"] == 1.0
    # Control: the attack on linear models does not get a tree.
    linear = [f for f in report["findings"] if (f["attack"], f["metric"]) == ("equation-solving", "fidelity")]
    assert all(f["value"] < 0.95 for f in linear)
    assert seconds < 60


def test_a_regressor_is_attacked_too(tmp_path: Path) -> None:
    diabetes = datasets.load("diabetes")
    report, _ = audited(Ridge(alpha=1.0), diabetes.x, diabetes.y, tmp_path)
    assert best(report, "fidelity")["value"] == 1.0
    assert any("regressor" in sentence for sentence in report["limits"])


def test_labels_alone_cost_a_thief_more(tmp_path: Path) -> None:
    cancer = datasets.load("breast-cancer")
    low, high = cancer.x.min(axis=0), cancer.x.max(axis=0)
    x = np.clip((cancer.x - low) / (high - low), 0.0, 1.0)
    report, _ = audited(LogisticRegression(max_iter=500), x, cancer.y, tmp_path, "--release", "label")
    defended = [f for f in report["findings"] if (f["target"], f["metric"]) == ("defended", "fidelity")]
    assert not any(f["answers"] == "soft" for f in defended)
    undefended = [
        f for f in report["findings"] if (f["target"], f["metric"]) == ("undefended", "queries_to_fidelity_0.95")
    ]
    assert min(f["value"] for f in undefended if f["value"]) < min(
        f["value"] or 1e9
        for f in report["findings"]
        if (f["target"], f["metric"]) == ("defended", "queries_to_fidelity_0.95")
    )


@pytest.mark.parametrize("plan", ["extraction", "extraction-quick"])
def test_a_tree_whose_leaves_answer_alike_is_found_in_a_minute_and_named(plan: str, tmp_path: Path) -> None:
    """Features as they come, with ranges from 0.02 to 4,700; leaves that are pure, so that most of them cannot be told apart."""
    cancer = datasets.load("breast-cancer")
    tree = DecisionTreeClassifier(max_leaf_nodes=20, random_state=0)
    report, seconds = audited(tree, cancer.x, cancer.y, tmp_path, plan=plan)
    for metric in ("fidelity", "uniform_fidelity"):
        found = best(report, metric)
        assert found["attack"] == "path-finding"
        assert found["value"] >= 0.999
    assert "by path-finding" in report["headline"]
    said = [t["value"] for t in report["told"] if t["what"] == "answered otherwise, drawn evenly, at most"]
    assert said
    assert 1.0 - found["value"] <= min(said)
    assert seconds < 60
