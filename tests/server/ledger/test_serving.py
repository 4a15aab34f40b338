"""The ledger of a real server: what callers and operators did stands in it, and nothing that a sealed request must not tell."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.commands import as_json, fails, run
from tests.models import images
from tests.server.ledger.conftest import FailingDisk, Room, Signing, wait
from tests.serving import Bundles, Served, command

from garrison.api.ledger import verify_ledger
from garrison.client import Client
from garrison.config import Config, LedgerConfig, ServerConfig
from garrison.errors import ConfigError, InputError, LedgerError
from garrison.limits import Limits
from garrison.server.ledger.reader import Row, answers_of, records_of
from garrison.server.ledger.records import Act, Outage
from garrison.server.operator import OperatorSocket, Wish, ask_servers
from garrison.server.root import assemble, assemble_enclaves, background


@contextmanager
def serve(bundles: Bundles, *names: str, folder: Path, limits: Limits | None = None) -> Iterator[Served]:
    config = Config(
        server=ServerConfig(port=0, state=str(folder / "state"), isolation="none"),
        ledger=LedgerConfig(folder=str(folder / "l")),
        limits=limits or Limits(),
    )
    assembly = assemble(config, bundles.paths(*names), [bundles.owner.public])
    with background(assembly) as url:
        yield Served(url, assembly)


def rows(folder: Path) -> list[Row]:
    return list(answers_of(folder / "l"))


def test_answers_refusals_and_faults_stand_in_it_with_their_true_codes(bundles: Bundles, tmp_path: Path) -> None:
    strange = np.random.default_rng(0).random((1, *images(1).shape[1:]), dtype=np.float32)
    with serve(bundles, "mlp-1", "reserved", folder=tmp_path) as served:
        assert served.infer(images(2)).status_code == 200
        assert served.infer(images(2) + 5).status_code == 400
        hidden = served.infer(strange, path="/v2/models/reserved/infer")
        httpx.post(served.url + "/v2/models/mlp/infer", content=b"{")
        assert httpx.post(served.url + "/v2/models/none/infer", content=b"{}").status_code == 404
    found = rows(tmp_path)
    assert [(row.model, row.entry.code, row.entry.rows) for row in found][:2] == [
        ("mlp", "ok", 2),
        ("mlp", "request.input", 0),
    ]
    assert [row.entry.code for row in found][3:] == ["request.malformed"]
    if hidden.status_code == 403:
        assert json.loads(hidden.content)["code"] == "refused"
        assert found[2].entry.code == "guard.out_of_distribution"
    assert all(row.entry.caller == "ip:127.0.0.1" and len(row.entry.request) == 64 for row in found)
    assert found[0].entry.answer
    assert found[1].entry.answer == ""
    with pytest.raises(LedgerError, match="no evidence"):
        verify_ledger(tmp_path / "l", bundles.folder / "owner.pub")
    (report,) = verify_ledger(tmp_path / "l", keys=[served.assembly.enclaves[0].card.public_key.hex()])
    assert report.answers == 4


def test_no_values_and_nothing_of_a_sealed_request_stand_in_it(room: Room, tmp_path: Path) -> None:
    """A misinformed, a refused and a good request under seal leave entries that differ in sizes and digests alone; in the open (the control) they do not."""
    config = Config(
        server=ServerConfig(port=0, state=str(tmp_path / "state")), ledger=LedgerConfig(folder=str(room.path))
    )
    x = images(1)
    with background(assemble_enclaves(config, [room.enclave])) as url:
        served = Served(url, None)  # type: ignore[arg-type]
        with Client(url, model="mlp", sealed=True, policy=room.trust.policy) as client:
            proofs = client.predict(x).proofs
            with pytest.raises(InputError):
                client.predict(x + 5)
        served.infer(x + 5)
    sealed, refused, plain = rows(tmp_path)
    assert (sealed.entry.code, refused.entry.code, plain.entry.code) == ("sealed", "sealed", "request.input")
    assert (sealed.entry.rows, refused.entry.rows) == (1, 0)
    assert [bool(getattr(sealed.entry, f)) for f in ENTRY] == [
        bool(getattr(refused.entry, f)) or f == "rows" for f in ENTRY
    ]
    text = b"".join(path.read_bytes() for path in room.segments)
    assert x.tobytes()[:16].hex().encode() not in text
    proof = tmp_path / "proof"
    proof.write_bytes(proofs[0])
    (found,) = as_json("ledger", "find", str(room.path), str(proof))["found"]
    assert found["seq"] == sealed.seq
    assert room.verify().problem == ""


ENTRY = ("caller", "rows", "code", "request", "answer", "nonce", "replaced", "distinct", "shadow", "receipt")


class Clearing(Signing):
    """An enclave whose alarms an operator clears; what is done when is noted."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.cleared: list[tuple[str, int]] = []
        self.look: Callable[[], int] = int

    def alarms(self) -> tuple[()]:
        return ()

    def clear_alarm(self, caller: str) -> bool:
        self.cleared.append((caller, self.look()))
        return True


def test_what_an_operator_does_is_written_down_first_and_else_not_done(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("garrison.server.operator._is_watched", lambda _: True)
    disk = FailingDisk()
    enclave = Clearing(room.enclave._sealed, Limits())
    enclave.look = lambda: sum(isinstance(record, Act) for record in records_of(room.chain))
    with room.open(disk) as ledger:
        operator = OperatorSocket(tmp_path, [enclave], ledger)
        (told,) = ask_servers(tmp_path, Wish(clear="alice"))
        assert told.cleared == ("mlp, version 1",)
        disk.fails = True
        with pytest.raises(ConfigError, match="ledger"):
            ask_servers(tmp_path, Wish(clear="bob"))
        operator.close()
        disk.fails = False
        wait(lambda: not ledger.why_not_ready())
    assert enclave.cleared == [("alice", 1)]
    (act,) = [record for record in records_of(room.chain) if isinstance(record, Act)]
    assert (act.act, act.user) == ("alarms.clear", os.geteuid())
    assert act.details == {"caller": "alice", "models": "mlp, version 1"}


def test_while_the_disk_fails_nothing_is_answered_and_then_it_goes_on(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FailingDisk()
    monkeypatch.setattr("garrison.server.ledger.ledger.DISK", disk)
    with serve(bundles, "mlp-1", folder=tmp_path) as served:
        assert served.infer().status_code == 200
        disk.fails = True
        for _ in range(3):
            refused = served.infer()
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert refused.headers["retry-after"]
        assert httpx.get(served.url + "/v2/health/live").status_code == 200
        disk.fails = False
        wait(lambda: served.infer().status_code == 200)
    assert all(row.entry.code == "ok" for row in rows(tmp_path))
    assert sum(isinstance(record, Outage) for record in records_of(tmp_path / "l" / "chain-000")) == 1


def test_a_disk_that_hangs_keeps_no_client_for_ever(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs: list[bool] = []

    def sync(descriptor: int) -> None:
        while hangs:
            time.sleep(0.01)
        os.fdatasync(descriptor)

    monkeypatch.setattr("garrison.server.ledger.ledger.DISK", sync)
    with serve(bundles, "mlp-1", folder=tmp_path, limits=Limits(queue_seconds=0.3)) as served:
        wait(lambda: served.infer().status_code == 200)
        hangs.append(True)
        late = served.infer()
        assert (late.status_code, late.json()["code"]) == (503, "unavailable")
        hangs.clear()
        wait(lambda: served.infer().status_code == 200)


@pytest.mark.slow
def test_workers_write_a_chain_each_and_one_is_for_what_operators_do(bundles: Bundles, tmp_path: Path) -> None:
    more = ("--ledger", str(tmp_path / "l"), "--workers", "2", "--isolation", "process")
    with command(bundles, "mlp-1", tmp_path, *more) as (server, said):
        for _ in range(12):
            with Client(said["url"], model="mlp") as client:
                client.predict(images(2))
        time.sleep(1.5)
        server.terminate()
        server.wait()
    reports = verify_ledger(tmp_path / "l", bundles.folder / "owner.pub", allow_simulated=True)
    assert len(reports) == 3
    assert sum(report.answers for report in reports) == 12
    assert {key for report in reports for key in report.keys} == {said["models"][0]["public_key"]}


def test_the_commands_tell_the_story(bundles: Bundles, tmp_path: Path) -> None:
    with serve(bundles, "mlp-1", folder=tmp_path) as served, Client(served.url, model="mlp") as client:
        proof = client.predict(images(3)).proofs[0]
    ledger, key = str(tmp_path / "l"), served.assembly.enclaves[0].card.public_key.hex()
    good = as_json("ledger", "verify", ledger, "--key", key)
    assert good["verified"]
    assert good["chains"][0]["answers"] == 1
    (tmp_path / "proof").write_bytes(proof)
    (found,) = as_json("ledger", "find", ledger, str(tmp_path / "proof"))["found"]
    assert (found["caller"], found["rows"]) == ("ip:127.0.0.1", 3)
    (line,) = run("ledger", "export", ledger).stdout.splitlines()
    assert json.loads(line)["request"] == found["request"]
    assert run("ledger", "export", ledger, "--format", "csv").stdout.startswith("chain,seq,time")
    assert "start" in run("ledger", "show", ledger).stdout
    assert as_json("ledger", "checkpoint", ledger)["checkpoint"]["at"] > 3
    assert as_json("ledger", "prune", ledger, "--before", "2020-01-01") == []
    assert "nothing vouches for" in run("ledger", "verify", ledger).stdout
    path = tmp_path / "l" / "chain-000" / "000000000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"rows":3', b'"rows":4'))
    changed = run("ledger", "verify", ledger, "--key", key)
    assert changed.exit_code == 1
    assert "was changed" in changed.stdout
    fails(LedgerError, "ledger", "find", ledger, "--digest", "0" * 64)
