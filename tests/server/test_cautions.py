from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.guard.detectors.chains import chain, watch_for_strangers
from tests.models import seal_mlp

from garrison.config import CallerConfig, Config, OidcConfig, ServerConfig
from garrison.enclave.card import service_card
from garrison.enclave.host import ServiceCard, WorkTerms
from garrison.enclave.service import Service
from garrison.server.cautions import cautions
from garrison.server.quotas import Quotas

TOKENS = OidcConfig(issuer="https://who", audience="us", jwks="keys.json")


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServiceCard]:
    """Of an armed watch, of one whose only detector is in shadow, of one in shadow, and of a chain that remembers nobody."""
    folder = tmp_path_factory.mktemp("cards")
    armed = watch_for_strangers()
    quiet = msgspec.structs.replace(
        armed, parameters={"detectors": {"ood-rate": armed.parameters["detectors"]["ood-rate"] | {"shadow": True}}}
    )
    chains = {
        "armed": chain(armed),
        "quiet": chain(quiet),
        "shadow": chain(msgspec.structs.replace(armed, shadow=True)),
        "none": (chain(armed)[0], chain(armed)[-1]),
    }
    sealed = {name: seal_mlp(folder / name, specs, name=name) for name, specs in chains.items()}
    return {name: service_card(Service(s.verified(), key=s.key), "none") for name, s in sealed.items()}


def told(card: ServiceCard, config: Config) -> list[str]:
    return [text.split()[0] for text in cautions(config, [card])]


@pytest.mark.parametrize(
    ("server", "oidc", "expected"),
    [
        (ServerConfig(), OidcConfig(), ["watch"]),
        (ServerConfig(keys="keys.json"), OidcConfig(), []),
        (ServerConfig(), TOKENS, []),
        (ServerConfig(workers=3), OidcConfig(), ["watch"]),
        (ServerConfig(workers=3, isolation="none"), TOKENS, ["each"]),
        (ServerConfig(workers=3, isolation="none"), OidcConfig(), ["each", "watch"]),
        (ServerConfig(isolation="none", keys="keys.json"), OidcConfig(), []),
    ],
)
def test_says_where_an_armed_watch_sees_less(
    cards: dict[str, ServiceCard], server: ServerConfig, oidc: OidcConfig, expected: list[str]
) -> None:
    assert told(cards["armed"], Config(server=server, oidc=oidc)) == expected


def test_a_watch_that_does_nothing_needs_no_keys(cards: dict[str, ServiceCard]) -> None:
    apart = Config(server=ServerConfig(workers=2, isolation="none"))
    for name in ("quiet", "shadow"):
        assert told(cards[name], Config()) == []
        assert told(cards[name], apart) == ["each"], "what it lists is still seen in parts"
    assert told(cards["none"], apart) == []


def test_names_the_models(cards: dict[str, ServiceCard], tmp_path: Path) -> None:
    config = Config(server=ServerConfig(workers=2, isolation="none", state=str(tmp_path)))
    (first, second) = cautions(config, list(cards.values()))
    assert "(armed, quiet, shadow)" in first
    assert "up to 2 times" in first
    assert "(armed)" in second


def test_a_proof_of_work_counts_once_at_each_worker(cards: dict[str, ServiceCard]) -> None:
    card = msgspec.structs.replace(cards["none"], work=WorkTerms(8, 60, "everybody"))
    (told,) = cautions(Config(server=ServerConfig(workers=2, isolation="none")), [card])
    assert "a proof of work counts once at each" in told
    assert cautions(Config(server=ServerConfig(workers=2)), [card]) == ()


def test_says_that_a_caller_named_for_a_policy_loses_the_quota_of_all(cards: dict[str, ServiceCard]) -> None:
    def found(**callers: CallerConfig) -> tuple[str, ...]:
        return cautions(Config(callers=callers), [cards["none"]])

    everybody, policy = CallerConfig(rows_per_day=10), CallerConfig(release="labels")
    (text,) = found(**{"*": everybody, "alice": policy, "bob": CallerConfig(rows_per_day=5), "carol": policy})
    assert text.startswith("[callers.alice] sets no quota")
    assert text.endswith("(and so for carol)")
    assert Quotas({"*": everybody, "alice": policy}).rows_of("alice") == 0, "which is what it says"
    assert found(alice=policy) == ()
    assert found(**{"*": policy, "alice": policy}) == ()
    assert found(**{"*": everybody, "alice": CallerConfig(release="labels", rows_per_day=5)}) == ()


def test_says_that_grpc_listens_to_more(cards: dict[str, ServiceCard]) -> None:
    for host, port, said in (("0.0.0.0", 0, True), ("0.0.0.0", None, False), ("127.0.0.1", 0, False), ("::", 0, False)):
        server = ServerConfig(host=host, grpc_port=port, insecure_plaintext=True)
        assert any("IPv6" in text for text in cautions(Config(server=server), [cards["none"]])) is said
