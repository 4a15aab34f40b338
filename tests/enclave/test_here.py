"""What a server may ask of an enclave, it may ask of every kind."""

from __future__ import annotations

import importlib

import pytest

from garrison.enclave.backends import BACKENDS, GATEWAY
from garrison.enclave.host import Drifting, Watching, Witnessing

KINDS = {**BACKENDS, "gateway": GATEWAY}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_backend_tells_of_alarms_and_drift_and_signs_ledgers(name: str) -> None:
    module, _, attribute = KINDS[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    assert issubclass(kind, Watching)
    assert issubclass(kind, Drifting)
    assert issubclass(kind, Witnessing)
    assert not issubclass(object, Drifting)  # control
