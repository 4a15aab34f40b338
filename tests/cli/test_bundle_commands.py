"""keygen, seal, verify and inspect, as a person and as a script use them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.bundle.conftest import FEATURES
from tests.cli.strict import as_json, fails, run, seal_arguments
from tests.sealing.test_sources import two_headed

from garrison.bundle.key_files import read_public_key
from garrison.bundle.reader import verify
from garrison.cli.trust import trusted_keys
from garrison.errors import (
    ChangedFileError,
    ConfigError,
    KeyFileError,
    NoTrustedKeyError,
    TargetExistsError,
    UntrustedKeyError,
)

BUDGET: dict[str, object] = {"rows": 5000, "period": "ever", "distinct": 0, "price_per_1000_rows": 0.0}


pytestmark = pytest.mark.usefixtures("nothing_from_outside")


# seal


def test_seal_tells_what_it_made(model: Path) -> None:
    run("keygen", "-o", "owner")
    told = as_json(*seal_arguments("--name", "digits", "--version", "3", "--labels", "a, b,c"))
    assert (told["name"], told["version"], told["task"]) == ("digits", 3, "classification")
    assert told["guard"] == ["bounds", "max-probability", "release"]
    assert told["secret"] is None
    assert any("garrison harden" in note for note in told["notes"])
    found = verify(Path("bundle"), trusted_keys([Path("owner.pub")]))
    assert (found.manifest.name, found.manifest.labels) == ("digits", ("a", "b", "c"))
    assert 0 <= found.manifest.provenance.metrics["accuracy"] <= 1


def test_the_bundle_is_named_after_its_folder(bundle: Path) -> None:
    assert as_json("inspect", "bundle")["manifest"]["name"] == "bundle"


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (("--release", "label"), "release", {"mode": "labels", "k": 3, "decimals": None, "radius": False}),
        (("--release", "rounded"), "release", {"mode": "rounded", "k": 3, "decimals": 3, "radius": False}),
        (
            ("--release", "top-k", "--k", "2", "--decimals", "1"),
            "release",
            {"mode": "top-k", "k": 2, "decimals": 1, "radius": False},
        ),
        (("--release", "full"), "release", {"mode": "full", "k": 3, "decimals": None, "radius": False}),
        (("--budget", "5000"), "budget", BUDGET),
        (("--budget", "5000/day"), "budget", BUDGET | {"period": "day"}),
        (
            ("--budget", "5000", "--budget-distinct", "200", "--price", "1.5"),
            "budget",
            BUDGET | {"distinct": 200, "price_per_1000_rows": 1.5},
        ),
        (("--defense", "modelguard-w:epsilon=0.5"), "modelguard-w", {"epsilon": 0.5, "keep_first": True}),
        (("--watch-repeats",), "repeat-watch", {"callers": 4096, "rows": 500, "share": 0.5}),
    ],
)
def test_the_owners_choices_stand_in_the_manifest(
    model: Path, given: tuple[str, ...], name: str, expected: dict[str, object]
) -> None:
    run("keygen", "-o", "owner")
    run(*seal_arguments(*given))
    chain = {d["name"]: d["parameters"] for d in as_json("inspect", "bundle")["manifest"]["guard"]}
    assert chain[name] == expected


def test_a_reject_option_and_shadow_stand_in_the_manifest(model: Path) -> None:
    run("keygen", "-o", "owner")
    run(*seal_arguments("--on-ood", "refuse", "--benign-loss", "0.05", "--shadow", "reject-option"))
    chain = as_json("inspect", "bundle")["manifest"]["guard"]
    assert [(d["name"], d["shadow"]) for d in chain] == [
        ("bounds", False),
        ("max-probability", False),
        ("reject-option", True),
        ("release", False),
    ]


def test_a_guard_that_misinforms_brings_a_secret(model: Path) -> None:
    model.write_bytes(two_headed().SerializeToString())
    run("keygen", "-o", "owner")
    told = as_json(*seal_arguments())
    assert Path(told["secret"]).name == "bundle.secret"
    assert stat.S_IMODE(Path("bundle.secret").stat().st_mode) == 0o600
    assert "bundle.secret" in run("inspect", "bundle").stdout.lower()


@pytest.mark.parametrize("budget", ["0", "-5", "many", "5000/week", "5000/", ""])
def test_a_budget_that_makes_no_sense_is_told(model: Path, budget: str) -> None:
    run("keygen", "-o", "owner")
    fails(ConfigError, *seal_arguments("--budget", budget), match="5000/day")


@pytest.mark.parametrize(
    "alone", [("--budget-distinct", "5"), ("--price", "1"), ("--budget", "5", "--budget-distinct", "6")]
)
def test_what_goes_with_a_budget_is_told_where_it_does_not_fit(model: Path, alone: tuple[str, ...]) -> None:
    run("keygen", "-o", "owner")
    fails(ConfigError, *seal_arguments(*alone), match="--budget")


def test_a_seal_says_what_a_proof_of_work_costs_here(model: Path) -> None:
    run("keygen", "-o", "owner")
    told = as_json(*seal_arguments("--defense", "proof-of-work:bits=10"))
    assert "proof-of-work" in told["guard"]
    assert any("2^10 hashes a row" in note and "1,000 rows" in note for note in told["notes"])


def test_what_is_missing_is_told_before_work_is_begun(model: Path) -> None:
    run("keygen", "-o", "owner")
    fails(ConfigError, "seal", "model.onnx", "--key", "owner.key", "-o", "bundle", match="--data")
    fails(KeyFileError, "seal", "model.onnx", "--key", "nowhere.key", "-o", "bundle", match=r"nowhere\.key")
    fails(KeyFileError, "seal", "model.onnx", "--key", "owner.pub", "-o", "bundle", match=r"owner\.pub")
    fails(ConfigError, *seal_arguments("--decimals", "2"), match="--release")
    fails(ConfigError, *seal_arguments("--labels", "@nowhere"), match="nowhere")
    fails(ConfigError, *seal_arguments("--defense", "modelgard"), match="unknown defense")
    Path("bundle").mkdir()
    (Path("bundle") / "mine").write_text("mine")
    fails(TargetExistsError, *seal_arguments("--force"), match="mine")
    run("seal", "nowhere.onnx", "--key", "owner.key", "-o", "b", code=2)


def test_labels_may_stand_in_a_file(model: Path) -> None:
    run("keygen", "-o", "owner")
    Path("labels.txt").write_text("T-shirt, top\nTrouser\n\nBag\n")
    run(*seal_arguments("--labels", "@labels.txt"))
    assert as_json("inspect", "bundle")["manifest"]["labels"] == ["T-shirt, top", "Trouser", "Bag"]


# verify, and who is trusted


def test_verify_needs_a_trusted_key_from_one_of_three_places(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(NoTrustedKeyError, "verify", "bundle", match="--trust")
    assert as_json("verify", "bundle", "--trust", "owner.pub")["verified"] is True
    run("keygen", "-o", "other")
    monkeypatch.setenv("GARRISON_TRUST", os.pathsep.join(["other.pub", "owner.pub"]))
    assert as_json("verify", "bundle")["verified"] is True
    fails(UntrustedKeyError, "verify", "bundle", "--trust", "other.pub")
    monkeypatch.delenv("GARRISON_TRUST")
    Path("garrison.toml").write_text('trust = ["owner.pub"]\n')
    assert as_json("verify", "bundle")["verified"] is True
    monkeypatch.setenv("GARRISON_TRUST", "other.pub")
    fails(UntrustedKeyError, "verify", "bundle")


def test_a_key_that_cannot_be_read_is_named(bundle: Path) -> None:
    fails(KeyFileError, "verify", "bundle", "--trust", "nowhere.pub", match=r"nowhere\.pub")
    fails(KeyFileError, "verify", "bundle", "--trust", "owner.key", match=r"owner\.key")


def test_verify_tells_name_signer_and_size(bundle: Path) -> None:
    told = run("verify", "bundle", "--trust", "owner.pub").stdout
    assert "verified" in told
    assert read_public_key(Path("owner.pub")).fingerprint in told


# inspect


def test_inspect_says_loudly_what_was_not_verified(bundle: Path) -> None:
    result = run("inspect", "bundle")
    assert "NOT VERIFIED" in result.stdout
    assert "NOT VERIFIED" in result.stderr
    assert as_json("inspect", "bundle")["verified"] is False
    assert "signer" not in as_json("inspect", "bundle")
    result = run("inspect", "bundle", "--trust", "owner.pub")
    assert "NOT VERIFIED" not in result.output
    told = as_json("inspect", "bundle", "--trust", "owner.pub")
    assert told["verified"] is True
    assert told["signer"] == read_public_key(Path("owner.pub")).fingerprint
    assert told["guard_form"] == "graph"


def test_inspect_with_a_trusted_key_does_not_show_a_changed_bundle(bundle: Path) -> None:
    data = bytearray((bundle / "graph.onnx").read_bytes())
    data[10] ^= 1
    (bundle / "graph.onnx").write_bytes(data)
    run("inspect", "bundle")
    fails(ChangedFileError, "inspect", "bundle", "--trust", "owner.pub", match=r"graph\.onnx")


def test_a_forged_name_cannot_write_to_the_terminal(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert '"labels": [' in text
    forged = text.replace('"created": "', '"created": "[bold]\\u001b]0;owned\\u0007 ')
    assert forged != text
    (bundle / "manifest.json").write_text(forged)
    told = run("inspect", "bundle").output
    assert "\x1b]0;" not in told
    assert "[bold]" in told


def test_a_forest_says_that_its_graph_is_its_one_chunk(tmp_path: Path) -> None:
    skops_io = pytest.importorskip("skops.io")
    from sklearn.ensemble import RandomForestClassifier

    x = np.random.default_rng(0).normal(size=(50, FEATURES))
    y = np.arange(50) % 3
    skops_io.dump(RandomForestClassifier(3, random_state=0).fit(x, y), "forest.skops")
    np.savez("rows.npz", x=x, y=y)
    run("keygen", "-o", "owner")
    run("seal", "forest.skops", "--data", "rows.npz", "--key", "owner.key", "-o", "forest")
    assert "its one chunk" in " ".join(run("inspect", "forest").stdout.replace("│", " ").split())


# As a program


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "garrison", *arguments], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )


def test_an_error_is_one_message_exit_code_one_and_the_files_name(bundle: Path) -> None:
    assert program("verify", "bundle", "--trust", "owner.pub").returncode == 0
    chunk = next((bundle / "parameters").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    told = program("verify", "bundle", "--trust", "owner.pub", "--json")
    assert told.returncode == 1
    error = json.loads(told.stdout)["error"]
    assert error["code"] == "bundle.truncated_file"
    assert chunk.relative_to(bundle).as_posix() in error["message"]
    assert "Traceback" not in told.stderr
    assert "bundle.truncated_file" in told.stderr


def test_a_bundle_is_verified_without_the_tools_that_made_it(bundle: Path) -> None:
    code = (
        "import sys; from garrison.cli import cli; "
        "cli.main(['verify', 'bundle', '--trust', 'owner.pub'], standalone_mode=False); "
        "heavy = {'onnx', 'torch', 'sklearn', 'skl2onnx', 'onnxruntime'} & set(sys.modules); assert not heavy, heavy"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_inspect_shows_names_as_they_are(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["provenance"] |= {"created": "[red]then\x1b[2J", "versions": {"[/x]": "1"}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    told = run("inspect", "bundle").stdout
    assert "[red]then\\x1b[2J" in told
    assert "[/x] 1" in told
    assert "\x1b" not in told
