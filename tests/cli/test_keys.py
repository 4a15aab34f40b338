"""`garrison keys`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands import as_json, fails, run

from garrison.errors import ConfigError


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


def test_a_name_in_a_key_file_is_shown_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "[red]keys.json"
    run("keys", "add", "alice", "--keys", str(file))
    ring = json.loads(file.read_text())
    ring["keys"]["[red]b\x1b[2J\u202e"] = ring["keys"]["alice"]
    file.write_text(json.dumps(ring))
    listed = run("keys", "list", "--keys", str(file)).stdout
    assert "[red]b\\x1b[2J\\u202e" in listed
    assert "\x1b" not in listed
    assert f"Kept in {file} as" in run("keys", "add", "bob", "--keys", str(file)).stderr


def test_a_key_has_scopes_an_end_and_a_successor(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    words = (
        "--scope",
        "infer:m",
        "--scope",
        "metadata:m@2",
        "--lives",
        "90d",
        "--rows-per-day",
        "5",
        "--requests-per-second",
        "0.5",
    )
    old = as_json("keys", "add", "alice", "--keys", file, *words)["key"]
    new = as_json("keys", "rotate", "alice", "--keys", file, "--overlap", "12h")["key"]
    assert new != old
    (entry,) = as_json("keys", "list", "--keys", file)
    assert entry["scopes"] == ["infer:m", "metadata:m@2"]
    assert (entry["rows_per_day"], entry["requests_per_second"]) == (5, 0.5)
    assert [key["ends"] is None for key in entry["keys"]] == [False, False], "the new one ends too"
    run("keys", "rotate", "alice", "--keys", file, "--lives", "never")
    listed = run("keys", "list", "--keys", file).stdout
    assert "…" not in listed, "an end that is cut is none"
    assert "never" in listed
    assert "infer:m" in listed
    run("keys", "rotate", "alice", "--keys", file, "--overlap", "0")
    assert len(as_json("keys", "list", "--keys", file)[0]["keys"]) == 1
    assert "a scope reads" in fails(ConfigError, "keys", "add", "bob", "--keys", file, "--scope", "infer")
    assert "expected a time" in run("keys", "add", "bob", "--keys", file, "--lives", "soon").output
    assert "longer than no time" in fails(ConfigError, "keys", "add", "bob", "--keys", file, "--lives", "0")
