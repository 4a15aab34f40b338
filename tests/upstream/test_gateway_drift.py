"""Behind a gateway an operator sees drift as elsewhere."""

from __future__ import annotations

from pathlib import Path

from tests.drifting import dark, reference
from tests.models import BOUNDS, RELEASE, SCORE
from tests.upstream.guards import entry_of, gateway, mlp_triton, seal_guard
from tests.upstream.triton import serving

from garrison.server.operator import Wish, ask_servers


def test_an_operator_sees_what_is_asked_of_a_gateway_drift(tmp_path: Path) -> None:
    with serving(mlp_triton(most_rows=512)) as triton:
        chain = (BOUNDS, SCORE, RELEASE, reference())
        sealed = seal_guard(tmp_path / "bundle", entry_of(triton.url, most_rows=512), chain)
        state = tmp_path / "state"
        with gateway(sealed, triton.url, state) as served:
            for seed in range(4):
                assert served.infer(dark(512, seed), "/v2/models/guarded/infer").status_code == 200
            (told,) = (one for answer in ask_servers(state, Wish(drift=True)) for one in answer.drift)
    assert (told.model, told.report.rows) == ("guarded", 2_048)
    assert told.report.named == ("ip:127.0.0.1",)
