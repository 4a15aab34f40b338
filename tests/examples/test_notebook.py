"""The example notebook runs from its first cell to its last, on real data."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("xgboost")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").rglob("*.ipynb"))
MOST_SECONDS = 120


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


def clones(text: str, asked: str) -> list[float]:
    """Accuracy of the clone of a thief who asks so: of the bare model's answers, and of the service's."""
    found = re.findall(rf"^{asked}, (undefended|defended): clone ([0-9.]+)%$", text, re.MULTILINE)
    assert [name for name, _ in found] == ["undefended", "defended"]
    return [float(share) / 100 for _, share in found]


def test_there_are_notebooks_without_outputs() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            assert not cell.get("outputs"), f"{path.name}: strip the outputs"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the notebook's machinery, not ours
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setitem(os.environ, "TMPDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "examples/notebook/guarded_model.ipynb", 4)
    started = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=MOST_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - started < MOST_SECONDS
    text = printed(notebook)
    for words in ("guard: bounds > max-probability", "is as its owner sealed it", "ChangedFileError", "signatures checked: True",
                  "BudgetExhaustedError", "a thief gets from the service", "undefended"):  # fmt: skip
        assert words in text
    bare, guarded = clones(text, "random numbers")
    assert bare > 4 / 26, "control: this thief works where there is no guard"
    assert guarded < bare / 2
    near_bare, near_guarded = clones(text, "numbers as letters have them")
    assert near_guarded > guarded + 0.1, "as the notebook says: this thief's rows are nearly letters"
    assert near_bare > near_guarded - 0.05
