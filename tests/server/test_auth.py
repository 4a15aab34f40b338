"""Keys are kept as hashes, checked, and lose their worth when they are revoked."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import httpx
import pytest
from tests.serving import Bundles, serve

from garrison.enclave.log import JsonLines
from garrison.errors import AuthenticationError, ConfigError, UnavailableError
from garrison.server.auth import Authenticator, add_key, read_keys, revoke_key

PEER = "127.0.0.1:4711"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def bearer(key: str) -> str:
    return f"Bearer {key}"


def test_a_key_names_its_caller(file: Path) -> None:
    alice, bob = add_key(file, "alice"), add_key(file, "bob.smith-2")
    guard = Authenticator(file)
    for _ in range(2):  # the second time from the cache
        assert guard.caller(bearer(alice), PEER) == "alice"
        assert guard.caller(bearer(bob), PEER) == "bob.smith-2"


def test_the_file_holds_no_secret_and_is_for_its_owner_only(file: Path) -> None:
    key = add_key(file, "alice")
    secret = key.rpartition("_")[2]
    assert secret not in file.read_text()
    assert read_keys(file).keys["alice"].secrets[0].sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert file.stat().st_mode & 0o077 == 0


def spoilt(key: str) -> list[str]:
    """Keys that are almost the key."""
    return [
        key[:-1] + ("0" if key[-1] != "0" else "1"),
        key[:-1],
        key + "0",
        key.replace("alice", "bob"),
        key.replace("alice", "mallory"),
        key.upper(),
        key.replace("gk_", ""),
        "gk_alice_",
        "gk_",
        "",
        "gk_alice_" + "é" * 20,
        "gk_alice_" + "0" * 10_000,
    ]


def test_anything_but_the_key_is_refused(file: Path) -> None:
    key = add_key(file, "alice")
    add_key(file, "bob")
    guard = Authenticator(file)
    for header in (
        *map(bearer, spoilt(key)),
        key,
        f"Basic {key}",
        f"Bearer{key}",
        f"Bearer,{key}",
        f"Bearer Bearer {key}",
    ):
        with pytest.raises(AuthenticationError, match="not known"):
            guard.caller(header, PEER)
    with pytest.raises(AuthenticationError, match="a key is needed"):
        guard.caller(None, PEER)
    for header in (
        bearer(key),
        f"bearer {key}",
        f"BEARER  {key} ",
    ):  # RFC 9110, 11.1: a scheme in any case, and some spaces
        assert guard.caller(header, PEER) == "alice"


def test_an_empty_secret_is_not_the_secret_of_nobody(file: Path) -> None:
    add_key(file, "alice")
    with pytest.raises(AuthenticationError):
        Authenticator(file).caller(bearer("gk_nobody_"), PEER)


def test_a_revoked_key_is_worthless_and_the_others_are_not(file: Path) -> None:
    alice, bob = add_key(file, "alice"), add_key(file, "bob")
    guard = Authenticator(file)
    assert guard.caller(bearer(alice), PEER) == "alice"
    revoke_key(file, "alice")
    guard.refresh()
    with pytest.raises(AuthenticationError):
        guard.caller(bearer(alice), PEER)
    assert guard.caller(bearer(bob), PEER) == "bob"
    again = add_key(file, "alice")
    guard.refresh()
    assert guard.caller(bearer(again), PEER) == "alice"
    assert again != alice


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"keys": {}, "extra": 1}', b'{"format": "other", "keys": {}}'])
def test_a_key_file_that_cannot_be_read_lets_nobody_in(file: Path, content: bytes | None) -> None:
    key, gone = add_key(file, "alice"), add_key(file, "bob")
    good = file.read_bytes()
    guard = Authenticator(file)
    assert guard.caller(bearer(gone), PEER) == "bob"
    assert guard.caller(bearer(key), PEER) == "alice"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
    guard.refresh()
    with pytest.raises(UnavailableError):  # it may be good: to be tried again
        guard.caller(bearer(key), PEER)
    with pytest.raises(AuthenticationError):
        guard.caller(None, PEER)
    with pytest.raises(ConfigError):
        Authenticator(file)
    file.write_bytes(good)
    revoke_key(file, "bob")
    guard.refresh()
    assert guard.caller(bearer(key), PEER) == "alice"
    with pytest.raises(AuthenticationError):
        guard.caller(bearer(gone), PEER)


def test_what_is_wrong_with_the_key_file_is_said_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_key(file, "alice")
    good = file.read_bytes()
    guard = Authenticator(file)

    def said() -> list[str]:
        found = [JsonLines().format(record) for record in caplog.records if record.levelname == "ERROR"]
        caplog.clear()
        return found

    file.write_bytes(b'{"keys": ')
    for _ in range(3):
        guard.refresh()
    (line,) = said()
    assert f"{file} is not a key file: Input data was truncated" in line
    file.unlink()
    file.mkdir()
    for _ in range(3):
        guard.refresh()
    (line,) = said()
    assert "expected a regular file" in line
    file.rmdir()
    file.write_bytes(good)
    guard.refresh()
    assert said() == []
    file.write_bytes(b'{"keys": ')
    guard.refresh()
    assert len(said()) == 1


def test_over_http_a_broken_key_file_says_to_try_again(bundles: Bundles, tmp_path: Path, file: Path) -> None:
    key = add_key(file, "alice")
    good = file.read_bytes()

    def until(status: int) -> httpx.Response:
        deadline = time.monotonic() + 30
        while True:
            response = running.infer(authorization=bearer(key))
            if response.status_code == status or time.monotonic() > deadline:
                return response
            time.sleep(0.05)

    with serve(bundles, "mlp-1", state=tmp_path, keys=str(file)) as running:
        assert until(200).status_code == 200
        file.write_bytes(b"{")
        response = until(503)
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert response.headers["retry-after"] == "1"
        assert running.infer().status_code == 401
        file.write_bytes(good)
        assert until(200).status_code == 200


def test_names_are_plain_and_given_once(file: Path) -> None:
    for name in ("", "Alice", "a b", "a_b", "ip:1.2.3.4", "-a", "a" * 65):
        with pytest.raises(ConfigError, match="name"):
            add_key(file, name)
    add_key(file, "alice")
    with pytest.raises(ConfigError, match="revoke it first"):
        add_key(file, "alice")
    with pytest.raises(ConfigError, match="has no key"):
        revoke_key(file, "bob")


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("192.0.2.7:80", "ip:192.0.2.7"),
        ("[2001:db8::1]:80", "ip:2001:db8::/64"),
        ("2001:db8::ffff:80", "ip:2001:db8::/64"),
        ("[::ffff:192.0.2.7]:80", "ip:192.0.2.7"),
        ("unix:", "ip:unknown"),
    ],
)
def test_without_keys_a_caller_is_an_address(peer: str, caller: str) -> None:
    assert Authenticator(None).caller("Bearer whatever", peer) == caller


def test_over_http_only_health_is_open(bundles: Bundles, tmp_path: Path, file: Path) -> None:
    key = add_key(file, "alice")
    with serve(bundles, "mlp-1", state=tmp_path, keys=str(file)) as running:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2"):
            assert httpx.get(running.url + path).status_code == 200
        closed = ("/v2/models/mlp", "/v2/models/mlp/ready", "/v2/models/nope", "/.well-known/garrison/keys", "/x")
        for path in closed:
            response = httpx.get(running.url + path)
            assert (response.status_code, response.json()["code"]) == (401, "request.unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"
            assert "mlp" not in response.text
        assert httpx.post(f"{running.url}/v2/repository/index").status_code == 401
        assert running.infer().status_code == 401
        assert running.infer(authorization=bearer(key)).status_code == 200
        assert running.infer(authorization=bearer(key + "0")).status_code == 401
        assert httpx.get(running.url + "/v2/models/mlp", headers={"authorization": bearer(key)}).status_code == 200
        revoke_key(file, "alice")
        deadline = time.monotonic() + 30
        while running.infer(authorization=bearer(key)).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running.infer(authorization=bearer(key)).status_code == 401
