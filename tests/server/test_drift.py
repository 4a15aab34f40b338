"""Drift from a served model to the operator: over the socket, on the command line, as a page; and after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from tests.drifting import dark, reference, seal_drifting
from tests.models import Sealed, images
from tests.serving import Served

from garrison.cli.drift import drift as command
from garrison.config import Config, ServerConfig
from garrison.enclave.service import Service
from garrison.errors import ConfigError
from garrison.guard.drifting.report import DriftReport
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.server.operator import Wish, ask_servers
from garrison.server.root import assemble, background

DRIFT = reference()


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_drifting(tmp_path_factory.mktemp("drift") / "BUNDLE")


@dataclass(frozen=True, slots=True)
class Drifted:
    state: Path
    served: Served


@pytest.fixture(scope="module")
def drifted(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drifted]:
    state = tmp_path_factory.mktemp("state")
    config = Config(server=ServerConfig(port=0, state=str(state), isolation="none"))
    assembly = assemble(config, [sealed.path], [sealed.owner.public])
    with background(assembly) as url:
        served = Served(url, assembly)
        for seed in range(4):
            assert served.infer(dark(512, seed), "/v2/models/drifting/infer").status_code == 200
        yield Drifted(state, served)


def told(state: Path) -> DriftReport:
    (one,) = (one for answer in ask_servers(state, Wish(drift=True)) for one in answer.drift)
    assert (one.model, one.version) == ("drifting", 1)
    return one.report


def test_the_guard_with_drift_stays_in_the_graph(drifted: Drifted) -> None:
    assert drifted.served.assembly.enclaves[0].card.guard_form == "graph"


def test_an_operator_sees_the_shift_and_whose_it_is(drifted: Drifted) -> None:
    report = told(drifted.state)
    assert report.rows == 2_048
    assert report.reference_rows == 2_500
    assert {alarm.kind for alarm in report.ringing} >= {"psi", "ks", "ewma"}
    assert report.named == ("ip:127.0.0.1",)
    assert report.columns[0].now


def test_the_command_line_shows_it(drifted: Drifted, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(command, ["report", "--state", str(drifted.state), "--json"])
    assert done.exit_code == 0, done.output
    assert msgspec.json.decode(done.output)[0]["report"]["rows"] == 2_048
    done = CliRunner().invoke(command, ["report", "--state", str(drifted.state), "-o", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "<svg" in text
    assert "http" not in text
    plain = CliRunner().invoke(command, ["report", "--state", str(drifted.state)])
    assert "moved by ip:127.0.0.1; rings" in plain.output


def test_a_model_that_is_not_there_is_an_error(drifted: Drifted) -> None:
    with pytest.raises(ConfigError, match="no model here looks for drift"):
        ask_servers(drifted.state, Wish(drift=True, model="other"))


def ask(service: Service, rows: int, caller: str = "ann", *, seed: int = 1) -> None:
    body, json_bytes = encode_request({"image": images(rows, seed)})
    (reply,) = service.answer([Ask(caller, -1, body, json_bytes)])
    assert reply.code == ""


def test_snapshots_bring_back_what_was_counted(sealed: Sealed) -> None:
    bundle, key = sealed.verified(), bytes(32)
    first, second = Service(bundle), Service(bundle)
    first.caller_state.resume(None, key)
    ask(first, 512)
    snapshot = first.caller_state.take()
    second.caller_state.resume(snapshot, key)
    assert second.drift() == first.drift()


def test_both_forms_of_the_guard_count_alike_and_a_lower_threshold_stays_in_the_graph(sealed: Sealed) -> None:
    bundle = sealed.verified()
    lower = {kind: value / 2 for kind, value in DRIFT.parameters["thresholds"].items()}
    graph, numpy = (
        Service(bundle, tightened={"drift": {"thresholds": lower}}),
        Service(bundle, tightened={"release": {"mode": "labels"}}),
    )
    assert graph.guard_form == "graph"
    assert numpy.guard_form.startswith("numpy")
    for service in (graph, numpy):
        ask(service, 300)
        refused, json_bytes = encode_request({"image": images(8) * 9})
        good, more = encode_request({"image": images(300, 2)})
        codes = [r.code for r in service.answer([Ask("bob", -1, refused, json_bytes), Ask("ann", -1, good, more)])]
        assert codes == ["request.input", ""]
    one, other = graph.drift(), numpy.drift()
    assert one is not None
    assert other is not None
    assert one.rows == other.rows == 512
    assert one.columns == other.columns
    assert one.thresholds["psi"] == other.thresholds["psi"] / 2


def test_who_demands_sealed_requests_shows_nothing_of_inputs(tmp_path: Path) -> None:
    service = Service(seal_drifting(tmp_path / "BUNDLE", require_sealed=True).verified())
    report = service.drift()
    assert report is not None
    assert (report.columns, report.callers) == ((), ())
    assert report.thresholds, "the control: of shifts it still tells"
