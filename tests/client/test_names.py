"""Whoever a server knows by a token or a certificate can seal requests too, and only in that name."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.models import Sealed, images
from tests.server.issuer import AUDIENCE, issuing
from tests.server.pki import Authority
from tests.serving import Bundles
from tests.simulated import Simulated

from garrison.client import Client
from garrison.client.names import caller_of, known_as
from garrison.config import Config, OidcConfig, ServerConfig
from garrison.errors import ConfigError, SealedRequestError
from garrison.limits import Limits
from garrison.server.root import assemble_enclaves, background


def token(claims: object) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.c2ln"


@contextmanager
def served(
    sealed: Sealed, state: Path, oidc: OidcConfig | None = None, **server: Any
) -> Iterator[tuple[str, Simulated]]:
    config = Config(server=ServerConfig(port=0, state=str(state), **server), oidc=oidc or OidcConfig())
    enclave = Simulated(sealed, Limits())
    with background(assemble_enclaves(config, [enclave])) as url:
        yield url, enclave


def test_what_a_key_and_a_token_say() -> None:
    assert caller_of(token({"sub": "alice@example.org"})) == "oidc:alice@example.org"
    assert caller_of(token({"sub": "x"}), "oidc:client-7") == "oidc:client-7"
    assert caller_of(None, "cert:alice") == "cert:alice"
    assert known_as("some other key") == ""
    assert known_as("gk_alice_00ff") == "alice"


@pytest.mark.parametrize(
    "key",
    [
        token({}),
        token({"sub": ""}),
        token({"sub": 7}),
        token([]),
        "a.b.c",
        "a.ä.c",
        f"a.{'A' * 20_000}.c",
        "a..c",
        token({"sub": "x"}).replace(".", "._", 1),
    ],
)
def test_a_token_without_a_name_must_be_given_one(key: str) -> None:
    with pytest.raises(ConfigError, match="caller="):
        caller_of(key)
    assert caller_of(key, "oidc:alice") == "oidc:alice"


@pytest.mark.parametrize("name", ["ä", "a b", "a\n"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="caller must be"):
        caller_of(None, name)


def test_who_shows_a_certificate_seals_in_its_name(bundles: Bundles, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    server, alice = authority.issue("server", "garrison"), authority.issue("alice", "alice")
    files: dict[str, Any] = {
        "tls_cert": str(server.cert),
        "tls_key": str(server.key),
        "tls_client_ca": str(authority.file),
    }
    options: dict[str, Any] = {"sealed": True, "allow_simulated": True, "tls": authority.trusting(alice)}
    with served(bundles.sealed["mlp-1"], tmp_path, tls_client_names=True, **files) as (url, enclave):
        with Client(url, caller="cert:alice", **options) as client:
            assert client.predict(images(1)).attested
            assert client.predict(images(1)).attested
        assert enclave.asks[-1].caller == "cert:alice"
        for other in ("cert:bob", ""):  # the control
            with Client(url, caller=other, **options) as client, pytest.raises(SealedRequestError, match="cert:alice"):
                client.predict(images(1))


def test_who_shows_a_token_seals_in_its_name(bundles: Bundles, tmp_path: Path) -> None:
    with issuing() as issuer:
        oidc = OidcConfig(issuer=issuer.url, audience=AUDIENCE, jwks=f"{issuer.url}/jwks")
        with served(bundles.sealed["mlp-1"], tmp_path, oidc) as (url, enclave):
            shown = issuer.token(scope="*")
            with Client(url, api_key=shown, sealed=True, allow_simulated=True) as client:
                assert client.predict(images(1)).attested
            assert enclave.asks[-1].caller == "oidc:alice"
            with (
                Client(url, api_key=shown, sealed=True, allow_simulated=True, caller="oidc:bob") as client,
                pytest.raises(SealedRequestError, match="oidc:alice"),
            ):
                client.predict(images(1))
