"""Keys with scopes, an end and successors; the file is strict, and never half-written."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving import Bundles, command, serve

from garrison.config import CallerConfig, Config, OidcConfig, ServerConfig
from garrison.errors import AuthenticationError, ConfigError
from garrison.server.auth import Authenticator
from garrison.server.identity import read_scopes
from garrison.server.key_file import FOR_EVER, FORMAT, MOST_SECRETS, add_key, digest, read_keys, revoke_key, rotate_key
from garrison.server.launching import _check_callers

PEER = "127.0.0.1:4711"
DAY = timedelta(days=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_ends(file: Path) -> None:
    now = [time.time()]
    short, long = add_key(file, "short", lives=timedelta(hours=1)), add_key(file, "long")
    guard = Authenticator(file, clock=lambda: now[0])
    for _ in range(2):  # the second time from the cache
        assert guard.caller(f"Bearer {short}", PEER) == "short"
    now[0] += 3601
    with pytest.raises(AuthenticationError):
        guard.caller(f"Bearer {short}", PEER)
    with pytest.raises(AuthenticationError):
        Authenticator(file, clock=lambda: now[0]).caller(f"Bearer {short}", PEER)
    assert guard.caller(f"Bearer {long}", PEER) == "long"


def test_after_a_rotation_both_keys_are_good_for_a_while(file: Path) -> None:
    now = [time.time()]
    old = add_key(file, "alice", scopes=("infer:m",), rows_per_day=7)
    new = rotate_key(file, "alice", overlap=DAY)
    guard = Authenticator(file, clock=lambda: now[0])
    assert {guard.caller(f"Bearer {key}", PEER) for key in (old, new)} == {"alice"}
    entry = read_keys(file).keys["alice"]
    assert (entry.scopes, entry.rows_per_day) == (("infer:m",), 7)
    now[0] += 86_401
    with pytest.raises(AuthenticationError):
        guard.caller(f"Bearer {old}", PEER)
    assert guard.caller(f"Bearer {new}", PEER) == "alice"


def test_a_rotated_key_lives_as_long_as_the_one_before_was_made_for(file: Path) -> None:
    """A key with an end once became one without."""
    add_key(file, "alice", lives=90 * DAY)
    for lives, expected in ((None, 90 * DAY), (None, 90 * DAY), (7 * DAY, 7 * DAY), (FOR_EVER, None), (None, None)):
        rotate_key(file, "alice", overlap=timedelta(0), lives=lives)
        (secret,) = read_keys(file).keys["alice"].secrets
        assert secret.lives == expected
    with pytest.raises(ConfigError, match="longer than no time"):
        rotate_key(file, "alice", overlap=DAY, lives=timedelta(0))
    add_key(file, "bob", lives=2 * DAY)
    rotate_key(file, "bob", overlap=timedelta(hours=1))
    rotate_key(file, "bob", overlap=timedelta(hours=1))
    assert [secret.lives for secret in read_keys(file).keys["bob"].secrets][-1] == 2 * DAY, "not what the overlap left"


def test_a_rotation_without_overlap_ends_the_old_key_at_once(file: Path) -> None:
    old = add_key(file, "alice")
    new = rotate_key(file, "alice", overlap=timedelta(0))
    guard = Authenticator(file)
    with pytest.raises(AuthenticationError):
        guard.caller(f"Bearer {old}", PEER)
    assert guard.caller(f"Bearer {new}", PEER) == "alice"


def test_rotations_never_lengthen_an_older_key_s_life_and_are_bounded(file: Path) -> None:
    add_key(file, "alice", lives=timedelta(minutes=5))
    ends = read_keys(file).keys["alice"].secrets[0].ends
    for _ in range(MOST_SECRETS - 1):
        rotate_key(file, "alice", overlap=DAY)
    assert read_keys(file).keys["alice"].secrets[0].ends == ends
    with pytest.raises(ConfigError, match="overlap 0"):
        rotate_key(file, "alice", overlap=DAY)
    rotate_key(file, "alice", overlap=timedelta(0))
    assert len(read_keys(file).keys["alice"].secrets) == 1
    with pytest.raises(ConfigError, match="has no key"):
        rotate_key(file, "bob", overlap=DAY)


def entry(**changes: Any) -> dict[str, Any]:
    good = {"secrets": [{"sha256": "0" * 64, "created": "2026-08-01T12:00:00Z"}], "scopes": ["*"]}
    return good | changes


@pytest.mark.parametrize(
    "bad",
    [
        entry(secrets=[]),
        entry(secrets=[{"sha256": "0" * 63, "created": "2026-08-01T12:00:00Z"}]),
        entry(secrets=[{"sha256": "0" * 64, "created": "2026-08-01T12:00:00"}]),  # of which time zone?
        entry(secrets=[{"sha256": "0" * 64, "created": "2026-08-01T12:00:00Z", "ends": "never"}]),
        entry(secrets=[{"sha256": "0" * 64, "created": "2026-08-01T12:00:00Z", "end": "2026-08-01T12:00:00Z"}]),
        entry(secrets=[{"sha256": "0" * 64, "created": "2026-08-01T12:00:00Z"}] * 5),
        entry(scopes=["inferr:*"]),
        entry(scopes=["infer"]),
        entry(scopes="*"),
        entry(rows_per_day=-1),
        entry(requests_per_second=-0.5),
        entry(scope=["*"]),
    ],
)
def test_what_is_not_understood_is_an_error(file: Path, bad: dict[str, Any]) -> None:
    file.write_text(json.dumps({"format": FORMAT, "keys": {"alice": entry()}}))
    assert "alice" in read_keys(file).keys  # control
    file.write_text(json.dumps({"format": FORMAT, "keys": {"alice": bad}}))
    with pytest.raises(ConfigError):
        read_keys(file)


@pytest.mark.parametrize(
    "bad", [b'{"format":"garrison-keys/1","keys":{"a":' + b"[" * 200_000, b'{"format":' + b'{"a":' * 100_000]
)
def test_a_file_that_is_nested_too_deeply_is_an_error(file: Path, bad: bytes) -> None:
    file.write_bytes(bad)
    with pytest.raises(ConfigError, match="not a key file"):
        read_keys(file)


def test_two_programs_that_change_the_file_lose_nothing(file: Path) -> None:
    def work(k: int) -> None:
        for n in range(5):
            add_key(file, f"caller-{k}-{n}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(file).keys) == 20
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock" and path != file] == []


@pytest.mark.parametrize(
    ("scopes", "may", "may_not"),
    [
        (("*",), [("infer", "m", 1), ("attest", "n", 9)], []),
        (("infer:m",), [("infer", "m", 1), ("infer", "m", 2)], [("metadata", "m", 1), ("infer", "n", 1)]),
        (("infer:m@2",), [("infer", "m", 2)], [("infer", "m", 1), ("infer", "m", 22)]),
        (("*:m",), [("attest", "m", 1)], [("attest", "mm", 1)]),
        (("attest:*", "infer:m@1"), [("attest", "z", 1), ("infer", "m", 1)], [("infer", "z", 1)]),
        ((), [], [("infer", "m", 1)]),
    ],
)
def test_scopes_cover_what_they_say(scopes: tuple[str, ...], may: list[Any], may_not: list[Any]) -> None:
    found = read_scopes(scopes)
    assert all(found.may(*what) for what in may)
    assert not any(found.may(*what) for what in may_not)
    assert all(found.sees(*what[1:]) for what in may)


@pytest.mark.parametrize(
    "word", ["", "infer", "infer:", "infer:m@", "infer:m@x", "INFER:m", "infer:m n", "**", "infer:../m"]
)
def test_a_scope_that_cannot_be_read_covers_nothing(word: str) -> None:
    with pytest.raises(ConfigError, match="a scope reads"):
        read_scopes([word])
    assert not read_scopes([word], strict=False).sees("m", 1)


def test_over_http_what_no_scope_covers_is_not_there(bundles: Bundles, tmp_path: Path, file: Path) -> None:
    every, some = add_key(file, "every"), add_key(file, "some", scopes=("infer:mlp@1", "metadata:plain"))
    with serve(bundles, "mlp-1", "mlp-2", "plain", state=tmp_path, keys=str(file)) as running:

        def get(path: str, key: str) -> httpx.Response:
            return httpx.get(running.url + path, headers={"authorization": f"Bearer {key}"})

        one, two, latest = (f"/v2/models/mlp{rest}/infer" for rest in ("/versions/1", "/versions/2", ""))
        expected = {one: 200, two: 404, latest: 404, "/v2/models/plain/infer": 403, "/v2/models/none/infer": 404}
        for path, status in expected.items():
            assert running.infer(path=path, authorization=f"Bearer {some}").status_code == status, path
        assert running.infer(path=latest, authorization=f"Bearer {every}").status_code == 200  # control
        assert get("/v2/models/plain", some).status_code == 200
        assert get("/v2/models/mlp/versions/1", some).status_code == 403
        hidden, absent = (get(f"/v2/models/mlp/versions/{n}", some).json()["error"] for n in (2, 3))
        assert hidden.replace("'2'", "'3'") == absent
        assert "2" not in absent.replace("'3'", "")
        names = {key["name"] + key["version"] for key in get("/.well-known/garrison/keys", some).json()["keys"]}
        assert names == {"mlp1", "plain1"}
        index = httpx.post(running.url + "/v2/repository/index", headers={"authorization": f"Bearer {some}"}).json()
        assert {(entry["name"], entry["version"]) for entry in index} == {("mlp", "1"), ("plain", "1")}
        nonce = "A" * 43
        for query, key, status in (
            ("&model=plain", some, 403),
            ("&model=mlp&version=2", some, 404),
            ("&model=plain", every, 404),
        ):
            assert get(f"/.well-known/garrison/attestation?nonce={nonce}{query}", key).status_code == status, query


def test_identity_may_be_shown_once(bundles: Bundles, tmp_path: Path, file: Path) -> None:
    """Which of two would count is chance, and a proxy in front may look at the other one."""
    keys = [f"Bearer {add_key(file, name)}" for name in ("alice", "bob")]
    with serve(bundles, "plain", state=tmp_path, keys=str(file)) as running:
        url = f"{running.url}/v2/models/plain"
        assert httpx.get(url, headers=[("authorization", keys[0])]).status_code == 200  # control
        for pair in (keys, keys[::-1], [keys[0]] * 2, [keys[0], ""]):
            answer = httpx.get(url, headers=[("authorization", value) for value in pair])
            assert (answer.status_code, answer.json()["code"]) == (400, "request.malformed"), pair
        for names in (("Authorization", "authorization"), ("AUTHORIZATION", "Authorization")):
            answer = httpx.get(url, headers=list(zip(names, keys, strict=True)))
            assert answer.status_code == 400
        assert httpx.get(url, headers=[("authorization", ", ".join(keys))]).status_code == 401
        body = running.infer(path="/v2/models/plain/infer", authorization=keys[0]).request
        for name, values in (
            ("content-type", ("application/json", "application/vnd.garrison.sealed")),
            ("content-encoding", ("identity", "gzip")),
        ):
            headers = [*body.headers.raw, *[(name.encode(), value.encode()) for value in values]]
            assert httpx.post(str(body.url), content=body.content, headers=headers).status_code == 400, name


def test_sighup_reads_the_keys_again_and_drops_nothing(bundles: Bundles, tmp_path: Path, file: Path) -> None:
    key = add_key(file, "alice")
    with command(bundles, "plain", tmp_path, "--keys", str(file)) as (process, told):
        url = f"{told['url']}/v2/models/plain"
        stop, codes = threading.Event(), []

        def ask() -> None:
            with httpx.Client(headers={"authorization": f"Bearer {key}"}) as client:
                while not stop.is_set():
                    codes.append(client.get(url).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        new = add_key(file, "bob")
        stamp = file.stat()
        for _ in range(5):
            os.kill(process.pid, signal.SIGHUP)
            time.sleep(0.02)
        deadline = time.monotonic() + 30
        while (
            httpx.get(url, headers={"authorization": f"Bearer {new}"}).status_code != 200
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        assert httpx.get(url, headers={"authorization": f"Bearer {new}"}).status_code == 200
        stop.set()
        thread.join()
        assert process.poll() is None
        assert set(codes) == {200}
        # A change that leaves size and times as they were is seen by SIGHUP alone.
        text = file.read_text().replace(digest(new.rpartition("_")[2]), "0" * 64)
        with file.open("r+") as same:
            same.write(text)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        os.kill(process.pid, signal.SIGHUP)
        deadline = time.monotonic() + 30
        while (
            httpx.get(url, headers={"authorization": f"Bearer {new}"}).status_code == 200
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        assert httpx.get(url, headers={"authorization": f"Bearer {new}"}).status_code == 401
    revoke_key(file, "bob")
    assert datetime.now(UTC) > read_keys(file).keys["alice"].secrets[0].created


@pytest.mark.parametrize(
    ("name", "server", "oidc", "comes"),
    [
        ("alice", {"keys": True}, False, True),
        ("alcie", {"keys": True}, False, False),
        ("alice", {}, False, False),
        ("ip:127.0.0.1", {}, False, True),
        ("ip:127.0.0.1", {"keys": True}, False, False),
        ("oidc:alice", {}, True, True),
        ("oidc:alice", {"keys": True}, False, False),
        ("cert:alice", {"tls_client_names": True}, False, True),
        ("cert:alice", {"tls_client_names": True, "keys": True}, False, False),  # the key's name counts
        ("cert:alice", {}, True, False),
        ("*", {}, False, True),
    ],
)
def test_a_policy_is_for_somebody_who_can_come(
    file: Path, name: str, server: dict[str, bool], oidc: bool, comes: bool
) -> None:
    add_key(file, "alice")
    given: dict[str, Any] = {"keys": str(file)} if "keys" in server else {}
    if "tls_client_names" in server:
        given |= {"tls_cert": "a", "tls_key": "b", "tls_client_ca": "c", "tls_client_names": True}
    issuer = OidcConfig(issuer="a", audience="b", jwks="c") if oidc else OidcConfig()
    config = Config(server=ServerConfig(**given), callers={name: CallerConfig(rows_per_day=1)}, oidc=issuer)
    if comes:
        _check_callers(config)
        return
    with pytest.raises(ConfigError, match=r"callers\."):
        _check_callers(config)
