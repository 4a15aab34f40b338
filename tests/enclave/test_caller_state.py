"""What the guard remembers of callers outlives its enclave and its server, and is taken from nobody else."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.enclave.workers import enclave, question, wait_until
from tests.models import BOUNDS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp
from tests.serving import Bundles, Served, command, serve

from garrison.bundle.manifest import guard_digest
from garrison.crypto.owner import OwnerKey
from garrison.crypto.snapshots import SnapshotSeal
from garrison.enclave import snapshots
from garrison.enclave.drill import CALLER
from garrison.enclave.host import Launch, launch
from garrison.enclave.service import Service
from garrison.errors import StateError, UnavailableError
from garrison.guard.defenses.repeat_watch import RepeatWatch, Seen
from garrison.guard.state import Callers
from garrison.types import DefenseSpec

WATCH = DefenseSpec(name="repeat-watch")
WITH_KEY = (BOUNDS, SCORE, misinform(0.6), RELEASE, WATCH)
WITHOUT_KEY = (BOUNDS, RELEASE, WATCH)
HOST_KEY = bytes(32)
NEVER, SOON = 1000.0, 0.1


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder, owner = tmp_path_factory.mktemp("watched"), OwnerKey.generate()
    chains = {"mlp": WITH_KEY, "plain": WITHOUT_KEY, "other": WITH_KEY}
    sealed = {name: seal_mlp(folder / name, chain, name=name, owner=owner) for name, chain in chains.items()}
    (folder / "owner.pub").write_bytes(owner.public.pem)
    return Bundles(folder, owner, sealed)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "EVERY_SECONDS", SOON)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "EVERY_SECONDS", NEVER)


def service_of(sealed: Sealed) -> Service:
    return Service(sealed.verified(), key=sealed.key)


def opened(sealed: Sealed, snapshot: bytes, key: bytes | None = None) -> bytes:
    """What is in a snapshot, by the model's key or another."""
    bundle = sealed.verified()
    seal = SnapshotSeal(key or sealed.key, bundle.manifest_sha256, guard_digest(bundle.manifest.guard))
    return seal.open(snapshot)[0]


def rows_in(state: bytes) -> dict[str, int]:
    """Rows by caller."""
    callers = Callers(Seen, version=2, most=4096)
    callers.load(msgspec.msgpack.decode(state)["repeat-watch"])
    return {name: seen.rows for name, seen in callers}


def rows_kept(sealed: Sealed, folder: Path) -> dict[str, int]:
    """Rows by caller over all places of a model."""
    found: dict[str, int] = {}
    for file in sorted(folder.glob(f"{sealed.verified().manifest_sha256}.*.sealed")):
        key = sealed.key if sealed.verified().manifest.key_commitment else file.with_suffix(".key").read_bytes()
        for name, rows in rows_in(opened(sealed, file.read_bytes(), key)).items():
            found[name] = found.get(name, 0) + rows
    return found


class Asking:
    """Somebody who asks without a pause, and counts the rows that were answered."""

    def __init__(self, started: object) -> None:
        self.rows = 0
        self._started = started
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _ask(self) -> None:
        ask = question(images(2))
        while not self._done.is_set():
            with suppress(UnavailableError):
                (reply,) = self._started.call([ask])  # type: ignore[attr-defined]
                assert reply.code == ""
                self.rows += 2
            time.sleep(0.001)


def killed_under_load(sealed: Sealed, folder: Path, *, wait: bool) -> tuple[int, int, int]:
    """Rows that were answered before the kill and after it, and rows that are remembered in the end."""
    with enclave(sealed, snapshots=folder) as started, Asking(started) as asking:
        wait_until(lambda: asking.rows >= 200)
        if wait:
            first = next(iter(rows_kept(sealed, folder).values()), 0)
            wait_until(lambda: next(iter(rows_kept(sealed, folder).values()), 0) > first)
        dead, before = started.card, asking.rows
        os.kill(started.process_id, signal.SIGKILL)
        wait_until(lambda: started.ready and started.card is not dead)
        wait_until(lambda: asking.rows >= before + 50)
    return before, asking.rows - before, rows_kept(sealed, folder)["caller"]


@pytest.mark.parametrize("name", ["mlp", pytest.param("plain", marks=pytest.mark.slow)], ids=["with a key", "without"])
def test_it_outlives_an_enclave_that_is_killed_under_load(
    bundles: Bundles, tmp_path: Path, soon: None, name: str
) -> None:
    before, after, kept = killed_under_load(bundles.sealed[name], tmp_path / "callers", wait=True)
    assert after < kept
    assert kept <= before + after + 2  # the reply to the last one may not have come back


def test_control_without_a_snapshot_it_is_gone(bundles: Bundles, tmp_path: Path, never: None) -> None:
    before, after, kept = killed_under_load(bundles.sealed["mlp"], tmp_path / "callers", wait=False)
    assert before >= 200
    assert kept <= after + 2


@pytest.mark.parametrize("isolation", ["none", pytest.param("process", marks=pytest.mark.slow)])
def test_it_outlives_a_graceful_restart_with_several_models(
    bundles: Bundles, tmp_path: Path, never: None, isolation: str
) -> None:
    for turn in (1, 2):
        with serve(bundles, "mlp", "plain", state=tmp_path, isolation=isolation) as served:
            assert all(enclave.card.keeps_state for enclave in served.assembly.enclaves)
            ask_twice(served)
        assert rows_kept(bundles.sealed["mlp"], tmp_path / "callers") == {"ip:127.0.0.1": 5 * turn}
        assert rows_kept(bundles.sealed["plain"], tmp_path / "callers") == {"ip:127.0.0.1": 3 * turn}
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "callers").iterdir()} == {0o600}


def ask_twice(served: Served) -> None:
    assert served.infer(images(5), "/v2/models/mlp/infer").status_code == 200
    assert served.infer(images(3), "/v2/models/plain/infer").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["process", "none"], ids=["one memory", "one each"])
def test_it_outlives_a_restart_with_several_workers(bundles: Bundles, tmp_path: Path, isolation: str) -> None:
    sealed, folder = bundles.sealed["plain"], tmp_path / "state" / "callers"
    for turn in (1, 2):
        with command(bundles, "plain", tmp_path, "--workers", "2", "--isolation", isolation) as (server, ready):
            for _ in range(8):
                told = Served(ready["url"], None).infer(  # type: ignore[arg-type]
                    images(2), "/v2/models/plain/infer", connection="close"
                )
                assert told.status_code == 200
            server.send_signal(signal.SIGTERM)
            server.wait(20)
        assert rows_kept(sealed, folder) == {"ip:127.0.0.1": 16 * turn}
        assert len(list(folder.glob("*.sealed"))) <= (2 if isolation == "none" else 1)


@pytest.fixture(scope="module")
def snapshot(bundles: Bundles) -> bytes:
    """A snapshot of the model "mlp", of two rows."""
    service = service_of(bundles.sealed["mlp"])
    service.caller_state.resume(None, HOST_KEY)
    service.answer([question(images(2))])
    taken = service.caller_state.take()
    assert taken is not None
    return taken


def remembered(service: Service, sealed: Sealed) -> dict[str, int]:
    """What a service knows after one more row."""
    service.answer([question(images(1))])
    taken = service.caller_state.take()
    assert taken is not None
    return rows_in(opened(sealed, taken))


def test_a_snapshot_is_gone_on_from(bundles: Bundles, snapshot: bytes, caplog: pytest.LogCaptureFixture) -> None:
    sealed = bundles.sealed["mlp"]
    service = service_of(sealed)
    with caplog.at_level(logging.INFO):
        service.caller_state.resume(snapshot, HOST_KEY)
    assert "goes on from snapshot 1" in caplog.text
    assert service.caller_state.take() is None, "nothing has changed yet"
    assert remembered(service, sealed) == {"caller": 3}


def test_any_flipped_bit_is_refused(bundles: Bundles, snapshot: bytes) -> None:
    bundle = bundles.sealed["mlp"].verified()
    seal = SnapshotSeal(bundles.sealed["mlp"].key, bundle.manifest_sha256, guard_digest(bundle.manifest.guard))
    assert rows_in(seal.open(snapshot)[0]) == {"caller": 2}
    for place in range(len(snapshot)):
        bad = bytearray(snapshot)
        bad[place] ^= 1 << (place % 8)
        with pytest.raises(StateError):
            seal.open(bytes(bad))
    for bad_one in (b"", snapshot[:-1], snapshot + b"\0", b"\xc1" * 40):
        with pytest.raises(StateError):
            seal.open(bad_one)


@pytest.mark.parametrize("what", ["changed", "another model", "another guard", "another key"])
def test_what_is_refused_is_said_and_callers_are_unknown_again(
    bundles: Bundles, snapshot: bytes, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    sealed, given = bundles.sealed["mlp"], snapshot
    service = service_of(sealed)
    said = what
    if what == "changed":
        given = snapshot[:-1] + bytes([snapshot[-1] ^ 1])
    elif what == "another model":
        sealed, said = bundles.sealed["other"], "another model's"
        service = service_of(sealed)
    elif what == "another guard":
        service = Service(sealed.verified(), key=sealed.key, tightened={"adaptive-misinformation": {"tau": 0.9}})
    else:
        bundle = sealed.verified()
        other = SnapshotSeal(bytes(32), bundle.manifest_sha256, guard_digest(bundle.manifest.guard))
        given = other.seal(opened(sealed, snapshot), 7)
    service.caller_state.resume(given, HOST_KEY)
    assert said in caplog.text
    service.answer([question(images(1))])
    taken = service.caller_state.take()
    assert taken is not None
    if what != "another guard":
        assert rows_in(opened(sealed, taken)) == {"caller": 1}


def test_a_changed_file_is_refused_and_the_server_starts(
    bundles: Bundles, tmp_path: Path, never: None, caplog: pytest.LogCaptureFixture
) -> None:
    sealed = bundles.sealed["mlp"]
    start = Launch(sealed.path, [sealed.owner.public], sealed.key, snapshots=tmp_path)
    for expected in (1, 2):
        started = launch("none", start)
        started.call([question(images(1))])
        started.stop()
        assert rows_kept(sealed, tmp_path) == {"caller": expected}
    (file,) = tmp_path.glob("*.sealed")
    data = file.read_bytes()
    file.write_bytes(data[:-20] + bytes([data[-20] ^ 4]) + data[-19:])
    started = launch("none", start)
    assert "does not open" in caplog.text
    started.call([question(images(1))])
    started.stop()
    assert rows_kept(sealed, tmp_path) == {"caller": 1}


def test_limit_an_older_snapshot_that_the_host_puts_back_is_believed(
    bundles: Bundles, snapshot: bytes, tmp_path: Path
) -> None:
    """Rollback: the threat model says so."""
    sealed = bundles.sealed["mlp"]
    service = service_of(sealed)
    service.caller_state.resume(snapshot, HOST_KEY)
    assert remembered(service, sealed) == {"caller": 3}
    again = service_of(sealed)
    again.caller_state.resume(snapshot, HOST_KEY)
    assert remembered(again, sealed) == {"caller": 3}


def test_a_defense_that_must_remember_does_not_start_without(
    bundles: Bundles, snapshot: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RepeatWatch, "must_remember", True)
    sealed, changed = bundles.sealed["mlp"], snapshot[:-1] + bytes([snapshot[-1] ^ 1])
    with pytest.raises(StateError, match="repeat-watch does not begin without"):
        service_of(sealed).caller_state.resume(changed, HOST_KEY)
    with pytest.raises(StateError, match="repeat-watch does not begin without"):
        launch_with(sealed, HOST_KEY, state=b"\x80")
    service_of(sealed).caller_state.resume(snapshot, HOST_KEY)
    service_of(sealed).caller_state.resume(None, HOST_KEY)


def launch_with(sealed: Sealed, host_key: bytes, *, state: bytes) -> None:
    """Resume from a genuine snapshot of a state that no defense has written."""
    bundle = sealed.verified()
    seal = SnapshotSeal(sealed.key, bundle.manifest_sha256, guard_digest(bundle.manifest.guard))
    service_of(sealed).caller_state.resume(seal.seal(state, 1), host_key)


def test_a_state_that_no_defense_has_written_counts_as_none(bundles: Bundles, caplog: pytest.LogCaptureFixture) -> None:
    for state in (b"", b"\x80", b"\xff", msgspec.msgpack.encode({"repeat-watch": b"junk"})):
        caplog.clear()
        launch_with(bundles.sealed["mlp"], HOST_KEY, state=state)
        assert "repeat-watch begins without" in caplog.text


def test_it_is_resumed_once_and_before_the_first_request(bundles: Bundles, snapshot: bytes) -> None:
    late = service_of(bundles.sealed["mlp"])
    late.answer([question(images(1))])
    with pytest.raises(StateError, match="before the first request"):
        late.caller_state.resume(snapshot, HOST_KEY)
    twice = service_of(bundles.sealed["mlp"])
    twice.caller_state.resume(None, HOST_KEY)
    with pytest.raises(StateError, match="once"):
        twice.caller_state.resume(snapshot, HOST_KEY)


def test_a_rehearsal_is_not_remembered(bundles: Bundles) -> None:
    service = service_of(bundles.sealed["mlp"])
    service.drill()
    service.caller_state.resume(None, HOST_KEY)
    assert remembered(service, bundles.sealed["mlp"]) == {"caller": 1}
    loud = service_of(bundles.sealed["mlp"])
    loud.caller_state.resume(None, HOST_KEY)
    loud.answer([msgspec.structs.replace(question(images(2)), caller=CALLER)])
    assert remembered(loud, bundles.sealed["mlp"]) == {CALLER: 2, "caller": 1}, "control"


def test_no_input_is_in_a_snapshot_sealed_or_open(bundles: Bundles) -> None:
    x = images(37)
    x[20, 0, 3] = np.random.default_rng().random(8, dtype=np.float32)
    canary, ask = x[20, 0, 3].tobytes(), question(x)
    assert canary in ask.body
    service = service_of(bundles.sealed["mlp"])
    service.caller_state.resume(None, HOST_KEY)
    service.answer([ask])
    taken = service.caller_state.take()
    assert taken is not None
    state = opened(bundles.sealed["mlp"], taken)
    assert rows_in(state) == {"caller": 37}
    for start in range(len(canary) - 3):
        assert canary[start : start + 4] not in taken + state
    assert b"caller" in state
    assert b"caller\xda" not in taken, "control: the caller's name is in the state, and not in the sealed form"
    assert b"repeat-watch" not in taken


def test_a_chain_that_remembers_nothing_writes_nothing(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "mlp")
    start = Launch(sealed.path, [sealed.owner.public], sealed.key, snapshots=tmp_path / "callers")
    started = launch("none", start)
    assert not started.card.keeps_state
    started.call([question(images(1))])
    started.stop()
    assert not (tmp_path / "callers").exists()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[snapshots.Snapshots]]:
    found: list[snapshots.Snapshots] = []
    yield found
    for place in found:
        place.close()


def test_each_place_has_one_writer(tmp_path: Path, places: list[snapshots.Snapshots]) -> None:
    places += [snapshots.Snapshots(tmp_path, "ab") for _ in range(2)]
    first, second = places
    first.keep(b"one")
    second.keep(b"two")
    first.close()
    places.append(third := snapshots.Snapshots(tmp_path, "ab"))
    assert (third.latest, third.key) == (b"one", first.key)
    assert second.key != first.key
    assert snapshots.Snapshots(None, "ab").latest is None


def test_without_a_place_on_the_disk_the_latest_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = snapshots.Snapshots(tmp_path / "file", "ab")
    assert "in memory alone" in caplog.text
    kept.keep(b"one")
    assert kept.latest == b"one"


def test_a_file_that_is_too_long_is_not_read(
    tmp_path: Path, places: list[snapshots.Snapshots], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshots, "MOST_BYTES", 10)
    (tmp_path / "ab.0.sealed").write_bytes(bytes(11))
    places.append(snapshots.Snapshots(tmp_path, "ab"))
    assert places[0].latest is None
    assert "longer than" in caplog.text
