from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.models import Sealed
from tests.serving import Served
from tests.upstream.guards import entry_of, gateway, mlp_triton, seal_guard
from tests.upstream.triton import Triton, serving


@pytest.fixture(scope="module")
def triton() -> Iterator[Triton]:
    with serving(mlp_triton()) as found:
        yield found


@pytest.fixture(scope="module")
def sealed(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_guard(tmp_path_factory.mktemp("guard") / "bundle", entry_of(triton.url))


@pytest.fixture(scope="module")
def served(sealed: Sealed, triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with gateway(sealed, triton.url, tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture
def honest(triton: Triton) -> Iterator[None]:
    triton.asked.clear()
    yield
    triton.change = None
