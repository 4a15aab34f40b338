"""`garrison predict`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tests.commands import as_json, fails, run, save
from tests.models import CLASSES, LABELS, images
from tests.serving import Bundles, Served, serve

from garrison.errors import AuthenticationError, ConfigError, GarrisonError, InputError


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return save(tmp_path / "in.npz", x=images(30), y=np.zeros(30, dtype=np.int64))


def test_predict_prints_a_table_and_the_accuracy(served: Served, questions: Path) -> None:
    result = run("predict", served.url, str(questions), "--model", "mlp")
    assert result.exit_code == 0, result.output
    assert any(label in result.stdout for label in LABELS)
    assert "probability" in result.stdout
    assert "accuracy: " in result.stdout
    assert "and 10 more rows" in result.stdout
    assert "signatures checked (key not attested)" in result.stderr
    assert "not checked" in run("predict", served.url, str(questions), "--model", "mlp", "--no-verify").stderr


def test_predict_gives_machines_json_and_keeps_answers(served: Served, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    found = as_json("predict", served.url, str(questions), "--model", "mlp", "--limit", "7", "-o", str(out))
    assert (found["model"], found["version"], found["rows"], found["proved"]) == ("mlp", "2", 7, True)
    assert len(found["labels"]) == 7
    assert found["accuracy"] == pytest.approx(np.mean(np.array(found["classes"]) == 0))
    with np.load(out, allow_pickle=False) as kept:
        assert kept["probabilities"].shape == (7, CLASSES)
        np.testing.assert_allclose(kept["probabilities"], found["outputs"]["probabilities"], atol=1e-7)


def test_predict_of_labels_only(served: Served, questions: Path) -> None:
    result = run("predict", served.url, str(questions), "--model", "plain")
    assert result.exit_code == 0, result.output
    assert "label" in result.stdout
    assert "probability" not in result.stdout


def test_predict_shows_its_key(bundles: Bundles, tmp_path: Path, questions: Path) -> None:
    file = tmp_path / "keys.json"
    key = run("keys", "add", "alice", "--keys", str(file)).stdout.strip()
    with serve(bundles, "plain", state=tmp_path / "state", keys=str(file)) as running:
        fails(AuthenticationError, "predict", running.url, str(questions))
        assert run("predict", running.url, str(questions), "--api-key", key).exit_code == 0
        assert run("predict", running.url, str(questions), GARRISON_API_KEY=key).exit_code == 0


def test_predict_explains_a_file_that_does_not_fit(served: Served, tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("hello")
    model = ("--model", "mlp")
    assert "is not an .npz file" in fails(InputError, "predict", served.url, str(text), *model)
    other = save(tmp_path / "other.npz", pictures=images(2))
    assert "expected the arrays image; found pictures" in fails(InputError, "predict", served.url, str(other), *model)
    short = save(tmp_path / "short.npz", x=images(3), y=np.zeros(2))
    assert "expected y of shape (3,), found (2,)" in fails(InputError, "predict", served.url, str(short), *model)
    named = save(tmp_path / "named.npz", image=images(2))
    assert run("predict", served.url, str(named), *model).exit_code == 0
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([{}], dtype=object))
    assert "plain arrays" in fails(InputError, "predict", served.url, str(objects), *model)


def test_predict_looks_at_the_output_before_anything_is_sent(questions: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with counting() as (url, asked):
        for bad in (tmp_path / "none" / "out.npz", tmp_path / "file" / "out.npz", tmp_path / "pipe"):
            assert "cannot be written" in fails(ConfigError, "predict", url, str(questions), "-o", str(bad))
        assert run("predict", url, str(questions), "-o", str(tmp_path / "folder.npz")).exit_code == 2
        assert asked == []
        fails(GarrisonError, "predict", url, str(questions), "-o", str(tmp_path / "out.npz"))  # control: it is asked
        assert asked
    assert not (tmp_path / "out.npz").exists()


@contextmanager
def counting() -> Iterator[tuple[str, list[str]]]:
    """A server that knows nothing, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
