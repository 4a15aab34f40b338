"""Tokens of a real issuer on a real port, and whatever looks like one."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey
from tests.server.issuer import AUDIENCE, Issuer, forged, issuing
from tests.serving import Bundles, serve
from tests.stalls import wait_until

from garrison.config import OidcConfig
from garrison.errors import AuthenticationError, ConfigError, UnavailableError
from garrison.server import jwks
from garrison.server.auth import Authenticator, add_key
from garrison.server.tokens import MOST_BYTES, Tokens

PEER = "127.0.0.1:4711"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing() as found:
        yield found


@pytest.fixture
def own() -> Iterator[Issuer]:
    """One that a test may spoil."""
    with issuing() as found:
        yield found


def settings(issuer: Issuer, **changes: Any) -> OidcConfig:
    return OidcConfig(**({"issuer": issuer.url, "audience": AUDIENCE, "jwks": f"{issuer.url}/jwks"} | changes))


@pytest.fixture(scope="module")
def tokens(issuer: Issuer) -> Tokens:
    return Tokens(settings(issuer))


@pytest.mark.parametrize("kid", ["rsa", "ec", "ed"])
def test_a_good_token_names_its_caller(issuer: Issuer, tokens: Tokens, kid: str) -> None:
    found = tokens.identify(issuer.token(kid, sub="alice@example.org", aud=["other", AUDIENCE]))
    assert found.name == "oidc:alice@example.org"
    assert found.scopes.may("infer", "m", 1)
    assert not found.scopes.may("metadata", "m", 1)
    assert time.time() < found.until <= time.time() + 331


def test_who_shows_nothing_is_told_what_is_taken_here(issuer: Issuer, tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "alice")
    for path, takes_keys in ((None, False), (tmp_path / "keys.json", True)):
        with pytest.raises(AuthenticationError, match=f"token of {issuer.url}") as found:
            Authenticator(path, settings(issuer)).identify(None, "127.0.0.1:1")
        assert ("gk_" in str(found.value)) is takes_keys


def unsigned(issuer: Issuer, algorithm: str, **header: Any) -> str:
    head = {name: value for name, value in ({"alg": algorithm, "kid": "ec"} | header).items() if value is not None}
    return forged(head, issuer.claims(), lambda _: b"")


def confused(issuer: Issuer, form: Callable[[Any], bytes], kid: str = "rsa") -> str:
    """The public key, which everybody knows, used as the secret of an HMAC."""
    secret = form(issuer.keys[kid])
    return forged({"alg": "HS256", "kid": kid}, issuer.claims(), lambda data: hmac.digest(secret, data, "sha256"))


def swapped(token: str) -> str:
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "bob"}).encode()).rstrip(b"=").decode()
    return f"{head}.{other}.{signature}"


MINE = ECKey.generate_key("P-256", {"kid": "ec"})

ATTACKS: dict[str, Callable[[Issuer], str]] = {
    "alg none": lambda i: unsigned(i, "none"),
    "alg None": lambda i: unsigned(i, "None"),
    "no signature": lambda i: unsigned(i, "ES256"),
    "public key as an HMAC secret, PEM": lambda i: confused(i, lambda key: key.as_pem(private=False)),
    "public key as an HMAC secret, DER": lambda i: confused(i, lambda key: key.as_der(private=False)),
    "public key as an HMAC secret, JWK": lambda i: confused(
        i, lambda key: json.dumps(key.as_dict(private=False)).encode()
    ),
    "RSA said, EC key meant": lambda i: i.token("rsa", {"kid": "ec"}),
    "an algorithm that is not in the list": lambda i: i.token("rsa", {"alg": "RS512"}),
    "another key under a known id": lambda i: i.token("ec", key=MINE),
    "a key of its own in the header": lambda i: i.token("ec", {"jwk": MINE.as_dict(private=False)}, MINE),
    "a key set of its own": lambda i: i.token("ec", {"jku": "http://127.0.0.1:9/jwks"}, MINE),
    "a certificate of its own": lambda i: i.token("ec", {"x5c": ["AAAA"]}, MINE),
    "a key id that is a path": lambda i: i.token("ec", {"kid": "../../../../dev/null"}, MINE),
    "a key id that is SQL": lambda i: i.token("ec", {"kid": "' OR 1=1 --"}, MINE),
    "a key id without an end": lambda i: i.token("ec", {"kid": "k" * 300}, MINE),
    "no key id, and several keys": lambda i: unsigned(i, "ES256", kid=None),
    "another issuer": lambda i: i.token(iss="https://example.org"),
    "the issuer with a slash": lambda i: i.token(iss=i.url + "/"),
    "no issuer": lambda i: i.token(iss=None),
    "another audience": lambda i: i.token(aud="other"),
    "no audience": lambda i: i.token(aud=None),
    "audience in part": lambda i: i.token(aud=AUDIENCE + "-admin"),
    "expired": lambda i: i.token(exp=int(time.time()) - 31),
    "never ends": lambda i: i.token(exp=None),
    "ends in words": lambda i: i.token(exp="tomorrow"),
    "ends in infinity": lambda i: i.token(exp=float("inf")),
    "ends in truth": lambda i: i.token(exp=True),
    "not yet valid": lambda i: i.token(nbf=int(time.time()) + 60),
    "made tomorrow": lambda i: i.token(iat=int(time.time()) + 86_400),
    "no subject": lambda i: i.token(sub=None),
    "empty subject": lambda i: i.token(sub=""),
    "a number for a subject": lambda i: i.token(sub=7),
    "a subject with a line break": lambda i: i.token(sub="alice\nbob"),
    "a subject that looks like another": lambda i: i.token(sub="\u0430lice"),
    "a long subject": lambda i: i.token(sub="a" * 201),
    "scopes that are a number": lambda i: i.token(scope=7),
    "other claims under the same signature": lambda i: swapped(i.token()),
    "huge": lambda i: i.token(padding="x" * MOST_BYTES),
    "huge header": lambda i: unsigned(i, "ES256", padding="x" * MOST_BYTES),
    "five parts": lambda i: i.token() + ".a.b",
    "one part": lambda _: "a" * 100,
    "nothing": lambda _: "..",
    "not base64": lambda _: "a?b.c.d",
    "deep JSON": lambda _: base64.urlsafe_b64encode(b'{"alg":"ES256","x":' + b"[" * 5000).decode() + ".a.b",
    "critical extensions": lambda i: unsigned(i, "ES256", crit=["exp"], exp=1),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_only_looks_like_a_token_is_refused(issuer: Issuer, tokens: Tokens, attack: str) -> None:
    try:
        token = ATTACKS[attack](issuer)
    except Exception as error:
        pytest.fail(f"the attack itself failed: {error!r}")
    with pytest.raises(AuthenticationError):
        tokens.identify(token)
    assert tokens.identify(issuer.token()).name == "oidc:alice"  # control


def test_clocks_may_differ_a_little(issuer: Issuer, tokens: Tokens) -> None:
    now = int(time.time())
    assert tokens.identify(issuer.token(exp=now - 10, nbf=now + 10, iat=now + 10)).name == "oidc:alice"
    strict = Tokens(settings(issuer, leeway_seconds=0.0))
    with pytest.raises(AuthenticationError):
        strict.identify(issuer.token(exp=now - 10))


def test_scopes_come_from_their_claim(issuer: Issuer, tokens: Tokens) -> None:
    some = tokens.identify(issuer.token(scope="openid infer:a@2 profile attest:*")).scopes
    assert some.may("infer", "a", 2)
    assert not some.may("infer", "a", 1)
    assert some.may("attest", "b", 1)
    assert not some.may("infer", "b", 1)
    assert tokens.identify(issuer.token(scope=["infer:a"])).scopes.may("infer", "a", 1)
    assert not tokens.identify(issuer.token(scope=None)).scopes.sees("a", 1)
    for_all = Tokens(settings(issuer, scope="", scopes=("*",), subject="client_id"))
    assert for_all.identify(issuer.token(scope="infer:b", client_id="batch")).scopes.everything
    with pytest.raises(AuthenticationError):
        for_all.identify(issuer.token())


def test_a_new_key_is_found_and_unknown_ones_are_asked_for_seldom(own: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    tokens = Tokens(settings(own))
    tokens.keys._clock = lambda: now[0]
    tokens.keys._read()
    asked, generation = own.asked, tokens.keys.generation
    own.add("new", ECKey.generate_key("P-256", {"kid": "new"}))
    with pytest.raises(AuthenticationError):
        tokens.identify(own.token("new"))  # we have just asked
    now[0] += 31
    with pytest.raises(UnavailableError, match="try again"):
        tokens.identify(own.token("new"))
    wait_until(lambda: tokens.keys.generation > generation)
    assert tokens.identify(own.token("new")).name == "oidc:alice"
    for k in range(50):
        with pytest.raises(AuthenticationError):
            tokens.identify(own.token("new", {"kid": f"unknown-{k}"}))
    assert own.asked == asked + 1


SPOILT: dict[str, Callable[[Issuer], None]] = {
    "500": lambda i: setattr(i, "status", 500),
    "redirect": lambda i: setattr(i, "status", 302),
    "not JSON": lambda i: setattr(i, "body", b"<html>"),
    "huge": lambda i: setattr(i, "body", b" " * (jwks.MOST_BYTES + 1)),
    "many keys": lambda i: setattr(i, "body", json.dumps({"keys": [{"kty": "EC"}] * 65}).encode()),
    "no keys": lambda i: setattr(i, "body", b'{"keys": []}'),
    "deep": lambda i: setattr(i, "body", b'{"keys": ' + b"[" * 100_000),
    "an HMAC secret": lambda i: setattr(i, "body", b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "ec"}]}'),
    "a short RSA key": lambda i: setattr(i, "body", short_rsa()),
    "for encryption": lambda i: setattr(
        i, "body", i.jwks.replace(b'"use": "sig"', b'"use": "enc"').replace(b'"EC"', b'"XX"').replace(b'"OKP"', b'"XX"')
    ),
}


def short_rsa() -> bytes:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505  weak, as is to be shown
    weak = key.public_key().public_numbers()

    def text(number: int) -> str:
        return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()

    return json.dumps({"keys": [{"kty": "RSA", "kid": "rsa", "n": text(weak.n), "e": text(weak.e)}]}).encode()


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_key_set_that_cannot_be_read_changes_nothing_until_the_old_one_is_too_old(own: Issuer, spoil: str) -> None:
    now = [1000.0]
    tokens = Tokens(settings(own))
    tokens.keys._clock = lambda: now[0]
    tokens.keys._read()
    token = own.token()
    SPOILT[spoil](own)
    now[0] += 3600
    with pytest.raises((OSError, ValueError)):
        tokens.keys._read()
    assert tokens.identify(token).name == "oidc:alice"
    now[0] += 1
    with pytest.raises(UnavailableError):
        tokens.identify(token)


def test_an_issuer_that_drips_is_not_waited_for(own: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(settings(own))
    monkeypatch.setattr(jwks, "_MOST_SECONDS", 0.3)
    own.drip = 0.05
    began = time.monotonic()
    with pytest.raises((OSError, ValueError)):
        tokens.keys._read()
    assert time.monotonic() - began < 15  # at a byte each twentieth of a second it takes much longer
    assert tokens.identify(own.token()).name == "oidc:alice"


def test_when_time_is_up_nothing_is_read_beside_tls() -> None:
    """`SSLSocket.shutdown` drops the TLS layer first: who is on the way could then have put keys in plain behind it."""
    here, there = socket.socketpair()
    context = ssl.create_default_context()
    with there, context.wrap_socket(here, server_hostname="issuer", do_handshake_on_connect=False) as connected:
        there.sendall(b"plain")
        with jwks._within(0.0, connected):
            wait_until(lambda: there.recv(1) == b"")
        with contextlib.suppress(ssl.SSLError):
            assert connected.recv(5) == b""


@pytest.mark.parametrize("odd", [{"key_ops": None}, {"kty": ["RSA"]}, {"use": {}}])
def test_odd_members_of_a_key_make_it_useless_and_nothing_else(own: Issuer, odd: dict[str, Any]) -> None:
    good = Tokens(settings(own)).keys
    key = {"kty": "RSA", "kid": "odd", "n": "AQAB", "e": "AQAB"} | odd
    with pytest.raises(ValueError, match="no key in it is good"):
        jwks._parse(json.dumps({"keys": [key]}).encode(), good._kinds, good._jose)


def test_an_issuer_that_is_away_at_the_start_is_asked_again(own: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    own.status = 503
    tokens = Tokens(settings(own, jwks_seconds=1.0))
    assert "no token is good" in caplog.text
    with pytest.raises(UnavailableError):
        tokens.identify(own.token())
    own.status = 200
    time.sleep(1.05)
    tokens.keys.refresh()
    wait_until(lambda: tokens.keys.usable)
    assert tokens.identify(own.token()).name == "oidc:alice"


def test_keys_from_a_file(own: Issuer, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    with pytest.raises(ConfigError, match=r"oidc\.jwks"):
        Tokens(settings(own, jwks=str(file)))
    own.hidden = {"rsa", "ed"}
    file.write_bytes(own.jwks)
    tokens = Tokens(settings(own, jwks=str(file)))
    assert tokens.identify(own.token()).name == "oidc:alice"
    without_id = own.token("ec", {"kid": None})
    assert json.loads(base64.urlsafe_b64decode(without_id.split(".")[0] + "==")).get("kid") is None
    assert tokens.identify(without_id).name == "oidc:alice"  # the only key
    assert own.asked == 0


@pytest.mark.parametrize(
    "url", ["http://example.org/jwks", "https://", "https://user:secret@example.org/jwks", "http://[::1/jwks"]
)
def test_a_url_on_which_others_could_put_keys_is_refused(issuer: Issuer, url: str) -> None:
    with pytest.raises(ConfigError, match=r"oidc\.jwks"):
        Tokens(settings(issuer, jwks=url))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"issuer": "a"}, "go together"),
        ({"algorithms": ("none",)}, "algorithms"),
        ({"algorithms": ("HS256",)}, "algorithms"),
        ({"algorithms": ()}, "algorithms"),
        ({"leeway_seconds": 1e9}, "leeway"),
        ({"scope": ""}, "scopes"),
    ],
)
def test_settings_that_would_leave_a_hole_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OidcConfig(**given)


def test_a_token_ends_although_it_was_remembered(issuer: Issuer) -> None:
    now = [time.time()]
    guard = Authenticator(None, settings(issuer), clock=lambda: now[0])
    header = f"Bearer {issuer.token()}"
    assert guard.caller(header, PEER) == "oidc:alice"
    now[0] += 329
    assert guard.caller(header, PEER) == "oidc:alice"
    now[0] += 2
    with pytest.raises(AuthenticationError):
        guard.caller(header, PEER)


def test_a_key_that_the_issuer_takes_back_ends_its_tokens(own: Issuer) -> None:
    guard = Authenticator(None, settings(own))
    tokens = guard._tokens
    assert tokens is not None
    headers = {kid: f"Bearer {own.token(kid)}" for kid in ("ec", "ed")}
    assert all(guard.caller(header, PEER) == "oidc:alice" for header in headers.values())
    own.hidden.add("ec")
    tokens.keys._read()
    guard.refresh()
    with pytest.raises(AuthenticationError):
        guard.caller(headers["ec"], PEER)
    assert guard.caller(headers["ed"], PEER) == "oidc:alice"


def test_a_subject_is_never_a_key_s_name(issuer: Issuer, tmp_path: Path) -> None:
    """Whoever may choose its subject must not become the caller whose budget and policy stand under that name."""
    key = add_key(tmp_path / "keys.json", "alice")
    guard = Authenticator(tmp_path / "keys.json", settings(issuer))
    assert guard.caller(f"Bearer {key}", PEER) == "alice"
    assert guard.caller(f"Bearer {issuer.token(sub='alice')}", PEER) == "oidc:alice"
    for sub in ("alice", "ip:127.0.0.1", "*"):
        assert guard.caller(f"Bearer {issuer.token(sub=sub)}", PEER) == f"oidc:{sub}"


def test_tokens_over_http(bundles: Bundles, issuer: Issuer, tmp_path: Path) -> None:
    with serve(bundles, "plain", "metered", state=tmp_path, sections={"oidc": settings(issuer)}) as running:
        path = "/v2/models/plain/infer"
        good = f"Bearer {issuer.token(scope='infer:plain')}"
        assert running.infer(path=path, authorization=good).status_code == 200
        assert running.infer(path=path).status_code == 401
        assert running.infer(path=path, authorization=f"Bearer {unsigned(issuer, 'none')}").status_code == 401
        refused = running.infer(path="/v2/models/metered/infer", authorization=good)
        assert (refused.status_code, refused.json()["code"]) == (404, "request.not_found")
        assert "metered" not in refused.json()["error"].replace("'metered'", "")
        seen = httpx.get(f"{running.url}/v2/models/plain", headers={"authorization": good})
        assert (seen.status_code, seen.json()["code"]) == (403, "request.forbidden")


def test_ed25519_under_its_older_name(own: Issuer) -> None:
    own.add("old", OKPKey.generate_key("Ed25519", {"kid": "old"}))
    with pytest.warns(match="EdDSA"):
        token = jwt.encode({"alg": "EdDSA", "kid": "old"}, own.claims(), own.keys["old"], algorithms=["EdDSA"])
    with pytest.raises(AuthenticationError):
        Tokens(settings(own)).identify(token)
    assert Tokens(settings(own, algorithms=("EdDSA",))).identify(token).name == "oidc:alice"
