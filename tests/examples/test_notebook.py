"""The example notebook runs from its first cell to its last, on real data."""

from __future__ import annotations

import os
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
