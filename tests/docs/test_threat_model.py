"""Every test that the threat model names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`([a-z_/]+\.py)::(\w+)`")


def missing(text: str) -> list[str]:
    found = []
    for file, name in NAMED.findall(text):
        path = ROOT / "tests" / file
        names = (
            {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}
            if path.exists()
            else set()
        )
        if name not in names:
            found.append(f"{file}::{name}")
    return found


def test_the_tests_that_it_names_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    assert len(NAMED.findall(text)) > 30
    assert missing(text) == []


def test_a_test_that_is_not_there_is_noticed() -> None:
    assert missing("`docs/test_threat_model.py::test_no` and `docs/none.py::test_no`") == [
        "docs/test_threat_model.py::test_no",
        "docs/none.py::test_no",
    ]
    assert missing("`docs/test_threat_model.py::missing`") == []
