"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import HealthCheck, settings

from tests.stalls import PATIENT_SECONDS

pytest_plugins = ["tests.ports", "tests.serving"]

# An example is no test of how fast this machine is just now.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# Nor is a plain question of a test: httpx waits five seconds where it is not told otherwise.
for phase in DEFAULT_TIMEOUT_CONFIG.as_dict():
    setattr(DEFAULT_TIMEOUT_CONFIG, phase, PATIENT_SECONDS)


@pytest.fixture(scope="session", autouse=True)
def state_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a server keeps where nobody says otherwise is not kept among the state of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
