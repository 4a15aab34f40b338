from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.guard.detectors.chains import chain, watch_for_strangers
from tests.models import seal_mlp

from garrison.config import Config, OidcConfig, ServerConfig
from garrison.enclave.card import service_card
from garrison.enclave.host import ServiceCard
from garrison.enclave.service import Service
from garrison.server.cautions import cautions

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
