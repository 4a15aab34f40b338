"""`garrison serve`, `predict`, `keys` and `doctor`, as a user types them."""

from __future__ import annotations

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.models import CLASSES, LABELS, images
from tests.serving import Bundles, Served, command, serve

from garrison import cli
from garrison.errors import AuthenticationError, ConfigError, GarrisonError, InputError, NoTrustedKeyError
from garrison.server.root import Assembly, OnReady
from garrison.types import Array


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.cli, list(words))


def fails(kind: type[GarrisonError], *words: str) -> str:
    result = run(*words)
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def as_json(*words: str) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return save(tmp_path / "in.npz", x=images(30), y=np.zeros(30, dtype=np.int64))


def save(file: Path, **arrays: Array) -> Path:
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return file


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_added_listed_and_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    added = run("keys", "add", "alice", "--keys", file)
    assert added.exit_code == 0
    assert added.stdout.startswith("gk_alice_")
    assert as_json("keys", "add", "bob", "--keys", file)["key"].startswith("gk_bob_")
    assert [entry["caller"] for entry in as_json("keys", "list", "--keys", file)] == ["alice", "bob"]
    listed = run("keys", "list", "--keys", file)
    assert "alice" in listed.stdout
    assert added.stdout.strip() not in listed.stdout
    assert run("keys", "revoke", "alice", "--keys", file).exit_code == 0
    assert [entry["caller"] for entry in as_json("keys", "list", "--keys", file)] == ["bob"]
    assert "has no key" in fails(ConfigError, "keys", "revoke", "alice", "--keys", file)


# --- serve -----------------------------------------------------------------------------------------------------------


def test_serve_says_what_is_served_and_how_it_is_guarded(bundles: Bundles, tmp_path: Path) -> None:
    with command(bundles, "metered", tmp_path) as (server, ready):
        (model,) = ready["models"]
        assert (model["name"], model["version"], model["isolation"]) == ("metered", 1, "none")
        assert [spec["name"] for spec in model["guard"]] == ["bounds", "budget", "release"]
        assert (model["budget_rows"], model["budget_period"]) == (100, "ever")
        assert len(bytes.fromhex(model["public_key"])) == 32
        assert ready["callers"] == "addresses"
        assert httpx.get(f"{ready['url']}/v2/health/ready").status_code == 200
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=20)
        assert server.returncode == 0
        assert "Traceback" not in said


def test_serve_tells_a_person_loudly_that_there_is_no_enclave(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:

    def ready_and_done(assembly: Assembly, on_ready: OnReady) -> None:
        on_ready("http://here")
        assembly.close()

    monkeypatch.setattr(importlib.import_module("garrison.cli.serve"), "run", ready_and_done)
    words = ["serve", str(bundles.sealed["metered"].path), "--trust", str(bundles.folder / "owner.pub")]
    cli.cli.main([*words, "--state", str(tmp_path), "--port", "0"], standalone_mode=False)
    out, err = capfd.readouterr()
    assert out == "http://here\n"
    assert "isolation: none (no enclave)" in err
    assert "bounds, budget, release" in err
    assert "100 rows a caller (ever)" in err


def test_serve_refuses_what_is_not_safe(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GARRISON_TRUST", raising=False)
    bundle, trust = str(bundles.sealed["plain"].path), str(bundles.folder / "owner.pub")
    fails(NoTrustedKeyError, "serve", bundle, "--port", "0")
    assert "without a key" in fails(ConfigError, "serve", bundle, "--trust", trust, "--host", "0.0.0.0", "--port", "0")
    (tmp_path / "garrison.toml").write_text("[server]\nprot = 1\n")
    assert "did you mean server.port?" in fails(ConfigError, "serve", bundle, "--trust", trust)
    assert run("serve").exit_code == 2
    assert run("serve", bundle, "--release", "nothing").exit_code == 2


# --- predict ---------------------------------------------------------------------------------------------------------


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
        environment = {"GARRISON_API_KEY": key}
        assert CliRunner().invoke(cli.cli, ["predict", running.url, str(questions)], env=environment).exit_code == 0


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


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_says_that_serving_works_here() -> None:
    found = as_json("doctor")
    assert found["serving_works"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["Python"]["ok"]
    assert checks["granian"]["needed"]
    assert not checks["torch"]["needed"]
    assert {"memfd_secret", "Landlock", "seccomp", "fashion-mnist"} <= checks.keys()
    assert all(check["mend"] for check in found["checks"] if not check["ok"])
    text = run("doctor")
    assert text.exit_code == 0
    assert "Serving works on this machine." in text.stdout


def test_doctor_fails_where_something_needed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["granian>=2.7,<3", "numpy>=999", "no-such-thing>=1 ; extra == 'torch'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needs)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["granian"]["ok"]
    assert "older than 999" in checks["numpy"]["found"]
    assert checks["no-such-thing"]["mend"] == "pip install --upgrade 'garrison[torch]'"
    assert run("doctor").exit_code == 1


def test_doctor_mends_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("GARRISON_CACHE", str(tmp_path / "file" / "cache"))
    found = as_json("doctor")
    (cache,) = [check for check in found["checks"] if check["name"] == "cache"]
    assert not cache["ok"]
    assert "GARRISON_CACHE" in cache["mend"]
    assert found["serving_works"] is True
