"""`garrison doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.commands import as_json, run

from garrison.cli.datasets import datasets
from garrison.errors import IsolationError


def test_doctor_says_that_serving_works_here() -> None:
    found = as_json("doctor")
    assert found["serving_works"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["Python"]["ok"]
    assert checks["granian"]["needed"]
    assert not checks["torch"]["needed"]
    assert {"level", "user", "secret-heap", "landlock", "seccomp", "fashion-mnist"} <= checks.keys()
    assert checks["level"]["found"].startswith("process")
    assert checks["not-dumpable"]["ok"]
    assert {"snp, tdx", "sgx", "nitro", "nitro, inside"} <= checks.keys()
    assert not checks["nitro"]["needed"]
    assert "not run on hardware" in checks["nitro"]["group"]
    assert "not used yet" not in str(found)
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
    assert checks["no-such-thing"]["mend"] == "pip install 'no-such-thing>=1'"
    assert checks["numpy"]["mend"] == "pip install 'numpy>=999'"
    told = run("doctor")
    assert told.exit_code == 1
    mends = [check["mend"] for check in checks.values() if not check["ok"]]
    assert all(any(line.endswith(mend) for line in told.stdout.splitlines()) for mend in mends), "whole, to be copied"


def test_doctor_mends_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("GARRISON_CACHE", str(tmp_path / "file" / "cache"))
    found = as_json("doctor")
    (cache,) = [check for check in found["checks"] if check["name"] == "cache"]
    assert not cache["ok"]
    assert "GARRISON_CACHE" in cache["mend"]
    assert found["serving_works"] is True


def test_doctor_fails_where_the_default_isolation_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """`garrison serve` would not start here unless told to do without."""

    def refused() -> None:
        raise IsolationError("no process can be started")

    monkeypatch.setattr("garrison.cli.doctor.rehearse", refused)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "process"]
    assert "--isolation none" in check["mend"]


def test_doctor_names_commands_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GARRISON_CACHE", str(tmp_path))  # no set is there
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["no[red]>=1 ; extra == 'torch'"])
    mends = [check["mend"] for check in as_json("doctor")["checks"] if check["group"] == "data sets"]
    assert "garrison datasets save fashion-mnist" in mends
    assert "in Python: garrison.datasets.fetch('magika')" in mends
    words = {mend.split()[2] for mend in mends if mend.startswith("garrison datasets ")}
    assert words <= datasets.commands.keys()
    assert "no[red]>=1" in run("doctor").stdout  # no markup
