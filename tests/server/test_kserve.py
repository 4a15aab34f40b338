"""KServe's unmodified client against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.server.kserve_client import check_answers, interpreter  # noqa: F401  a fixture
from tests.serving import Bundles, Served


@pytest.mark.slow
@pytest.mark.xdist_group("kserve")
def test_the_kserve_client_works_unmodified(
    interpreter: Path,  # noqa: F811
    served: Served,
    bundles: Bundles,
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("kserve_asks.py")
    check_answers(interpreter, script, served.url, bundles, tmp_path, ("json", "binary"))
