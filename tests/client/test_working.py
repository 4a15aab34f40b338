"""What a client works for, and what it does not."""

from __future__ import annotations

import pytest

from garrison.client.working import rows_at_once, terms_of
from garrison.errors import ServiceError
from garrison.protocol.oip_metadata import ModelExtras, ModelMetadata, WorkMetadata
from garrison.types import Task


def metadata(bits: int) -> ModelMetadata:
    extras = ModelExtras(
        version="1",
        task=Task.CLASSIFICATION,
        labels=(),
        ranges={},
        manifest_digest="",
        guard_digest="",
        budget_rows=0,
        budget_period="ever",
        work=WorkMetadata(bits=bits, window_seconds=300),
    )
    return ModelMetadata(name="m", inputs=(), outputs=(), garrison=extras)


def test_work_that_cannot_be_is_no_error_of_the_client_s_own() -> None:
    assert rows_at_once(terms_of(metadata(12)), 5000) == 1024  # control
    assert rows_at_once(terms_of(metadata(10**9)), 5000) == 1
    with pytest.raises(ServiceError, match="hashes a row"):
        terms_of(metadata(-1))
