from __future__ import annotations

import pytest
from tests.attest.makers import WORLDS
from tests.attest.nitro_world import NitroWorld
from tests.attest.snp_world import SnpWorld
from tests.attest.worlds import World


@pytest.fixture(scope="session")
def worlds() -> dict[str, World]:
    return {name: make() for name, make in WORLDS.items()}


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest, worlds: dict[str, World]) -> World:
    return worlds[request.param]


@pytest.fixture(scope="session")
def snp(worlds: dict[str, World]) -> SnpWorld:
    found = worlds["snp"]
    assert isinstance(found, SnpWorld)
    return found


@pytest.fixture(scope="session")
def nitro(worlds: dict[str, World]) -> NitroWorld:
    found = worlds["nitro"]
    assert isinstance(found, NitroWorld)
    return found
