"""docs/middleware.md: its example runs as it stands, and its table names every setting."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path

import pytest
from tests.asgi.apps import Caller
from tests.models import LABELS, images, mlp
from tests.serving import Bundles

from garrison.asgi import Guarded

pytest.importorskip("fastapi")
PAGE = (Path(__file__).parents[2] / "docs" / "middleware.md").read_text()


def test_the_example_runs(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "FastAPI()" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(mlp(0).SerializeToString())
    (tmp_path / "BUNDLE").symlink_to(bundles.sealed["mlp-1"].path)
    (tmp_path / "BUNDLE.secret").touch(0o600)
    (tmp_path / "BUNDLE.secret").write_bytes(Path(f"{bundles.sealed['mlp-1'].path}.secret").read_bytes())
    (tmp_path / "OWNER.pub").write_bytes((bundles.folder / "owner.pub").read_bytes())
    app = types.ModuleType("example")
    monkeypatch.setitem(__import__("sys").modules, "example", app)
    exec(compile(code, "middleware.md", "exec"), app.__dict__)  # noqa: S102  our own page
    body = {"x": images(2).reshape(2, -1).tolist()}
    assert Caller(app.app).ask(json=body).status_code == 401
    answer = Caller(app.app).ask(json=body, headers={"x-customer": "ann"}).json()
    assert answer.keys() == {"probabilities", "label"}
    assert set(answer["label"]) <= set(LABELS)


def test_every_setting_is_in_the_table() -> None:
    table = PAGE.split("## Settings")[1].split("**Callers.**")[0]
    named = set(
        re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    )
    assert named == set(inspect.signature(Guarded).parameters) - {"app"}
