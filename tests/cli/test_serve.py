"""`garrison serve`."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from benchmarks.serving.driving import tree
from tests.commands import fails, run
from tests.pools import pools
from tests.serving import Bundles, command

from garrison.cli import cli
from garrison.errors import ConfigError, IsolationError, NoTrustedKeyError
from garrison.server.root import Assembly, OnReady


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
        _, said = server.communicate(timeout=60)
        assert server.returncode == 0
        assert "Traceback" not in said


@pytest.mark.parametrize("more", [("--isolation", "none"), ("--isolation", "process", "--workers", "2")])
def test_serve_keeps_its_threads_memory_in_one_pool(bundles: Bundles, tmp_path: Path, more: tuple[str, ...]) -> None:
    """By itself each thread has one, and keeps the most it ever needed: with few requests it has six of them."""
    with command(bundles, "metered", tmp_path, "--ledger", str(tmp_path / "ledger"), *more) as (server, ready):
        for _ in range(20):
            assert httpx.get(f"{ready['url']}/v2/health/ready").status_code == 200
        serving = [child for child in tree(server.pid) if is_server(child)]
        assert len(serving) == (3 if "--workers" in more else 1)
        assert all(pools(one) <= 1 for one in serving)


def is_server(process: int) -> bool:
    """Not an enclave, and not the spare."""
    return b"garrison.enclave.worker" not in Path(f"/proc/{process}/cmdline").read_bytes()


def test_serve_tells_a_person_loudly_that_there_is_no_enclave(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:

    def ready_and_done(assembly: Assembly, on_ready: OnReady) -> None:
        on_ready("http://here")
        assembly.close()

    monkeypatch.setattr(importlib.import_module("garrison.cli.serving"), "run", ready_and_done)
    words = ["serve", str(bundles.sealed["metered"].path), "--trust", str(bundles.folder / "owner.pub")]
    cli.main([*words, "--isolation", "none", "--state", str(tmp_path), "--port", "0"], standalone_mode=False)
    out, err = capfd.readouterr()
    assert out == "http://here\n"
    assert "isolation: none (no enclave)" in err
    assert "bounds, budget, release" in err
    assert "100 rows a caller (ever)" in err


def test_a_log_of_json_holds_nothing_else(bundles: Bundles, tmp_path: Path) -> None:
    (tmp_path / "garrison.toml").write_text('[operations]\nlog = "json"\n')
    words = ("serve", str(bundles.sealed["metered"].path), "--trust", str(bundles.folder / "owner.pub"))
    more = ("--config", str(tmp_path / "garrison.toml"), "--isolation", "none", "--state", str(tmp_path), "--port", "0")
    run = [sys.executable, "-m", "garrison", *words, *more]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        server.terminate()
        _, said = server.communicate(timeout=60)
    lines = [json.loads(line) for line in said.splitlines()]
    (served,) = [line["message"] for line in lines if line["message"].startswith("serving: ")]
    assert json.loads(served.removeprefix("serving: "))["url"] == url
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


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
    assert run("serve", bundle, "--release", "labels").exit_code == 2  # one spelling, that of `garrison seal`


def test_serve_isolates_unless_told_otherwise_and_says_how(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def ready_and_done(assembly: Assembly, on_ready: OnReady) -> None:
        on_ready("http://here")
        assembly.close()

    monkeypatch.setattr(importlib.import_module("garrison.cli.serving"), "run", ready_and_done)
    words = ["serve", str(bundles.sealed["metered"].path), "--trust", str(bundles.folder / "owner.pub")]
    words += ["--state", str(tmp_path), "--port", "0"]
    cli.main([*words, "--json", "--require-isolation", "process-basic"], standalone_mode=False)
    (model,) = json.loads(capfd.readouterr().out)["models"]
    assert model["isolation"].startswith("process")
    assert model["capabilities"]["not-dumpable"]
    cli.main(words, standalone_mode=False)
    assert "a simulation of an enclave" in capfd.readouterr().err
    assert "trusted hardware" in fails(IsolationError, *words, "--require-isolation", "hardware")
    assert "choose --isolation process" in fails(
        IsolationError, *words, "--isolation", "none", "--require-isolation", "process"
    )
    assert "takes --isolation process" in fails(ConfigError, *words, "--isolation", "none", "--secret-heap")
    assert run(*words, "--parameter-memory", "much").exit_code == 2
    assert run(*words, "--parameter-memory", "0MiB").exit_code == 2


def test_serve_looks_at_the_folder_of_budgets_although_no_model_has_one(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def ready_and_done(assembly: Assembly, _: OnReady) -> None:
        started.append(assembly)
        assembly.close()

    monkeypatch.setattr(importlib.import_module("garrison.cli.serving"), "run", ready_and_done)
    words = ["serve", str(bundles.sealed["plain"].path), "--trust", str(bundles.folder / "owner.pub")]
    words += ["--isolation", "none", "--port", "0", "--state"]
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(ConfigError, *words, str(tmp_path / "file" / "state"))
    with monkeypatch.context() as patched:  # root may write to everything
        patched.setattr("os.access", lambda path, _: path != tmp_path)
        assert "nothing may be written" in fails(ConfigError, *words, str(tmp_path / "state"))
    assert started == []
    assert run(*words, str(tmp_path / "new" / "state")).exit_code == 0  # control
    assert len(started) == 1
    assert not (tmp_path / "new").exists()  # nothing is kept there yet
