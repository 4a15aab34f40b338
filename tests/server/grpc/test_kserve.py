"""KServe's unmodified gRPC client against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.server.kserve_client import check_answers, interpreter  # noqa: F401  a fixture
from tests.serving import Bundles, serve


@pytest.mark.slow
@pytest.mark.xdist_group("kserve")
def test_the_kserve_client_works_unmodified(interpreter: Path, bundles: Bundles, tmp_path: Path) -> None:  # noqa: F811
    script = Path(__file__).with_name("kserve_asks.py")
    with serve(bundles, "mlp-1", "mlp-2", state=tmp_path, grpc_port=0) as served:
        assert served.assembly.grpc is not None
        check_answers(interpreter, script, served.assembly.grpc.address, bundles, tmp_path, ("typed", "raw"))
