"""`garrison keys`."""

from __future__ import annotations

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
