"""What a crash, a full disk and a failing one do to a ledger: nothing that anybody was told of is lost, and nothing stands there twice."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server.ledger.conftest import FailingDisk, Room, fill, wait
from tests.stalls import PATIENT_SECONDS

from garrison.errors import ConfigError, LedgerError, UnavailableError
from garrison.server.ledger.folder import segment_name
from garrison.server.ledger.reader import answers_of, records_of
from garrison.server.ledger.records import Begin, Chain, Outage, Segment, Start, Stop
from garrison.server.ledger.writer import Writer


def nonces(room: Room) -> list[str]:
    return [row.entry.nonce for row in answers_of(room.path)]


def test_a_chain_is_gone_on_with(room: Room) -> None:
    room.made(2)
    room.made(2)
    kinds = [type(record) for record in records_of(room.chain)]
    assert kinds.count(Begin) == 1
    assert kinds.count(Start) == kinds.count(Stop) == 2
    assert room.verify().problem == ""


def test_files_belong_to_the_writer_alone(room: Room) -> None:
    room.made(2)
    for path in (room.path, *room.path.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_folder_that_others_may_write_to_or_a_link_is_refused(room: Room, tmp_path: Path) -> None:
    room.made(2)
    room.path.chmod(0o770)
    with pytest.raises(ConfigError, match="nobody else may write"), room.open():
        pass
    room.path.chmod(0o700)
    real = tmp_path / "elsewhere"
    room.path.rename(real)
    room.path.symlink_to(real)
    with pytest.raises(ConfigError, match="a link"), room.open():
        pass
    room.path.unlink()
    real.rename(room.path)
    path = room.segments[0]
    path.rename(tmp_path / "segment")
    path.symlink_to(tmp_path / "segment")
    with pytest.raises(LedgerError), room.open():
        pass
    path.unlink()
    (tmp_path / "segment").rename(path)
    path.chmod(0o666)
    with pytest.raises(LedgerError, match="only its writer"), room.open():
        pass


def test_two_servers_write_two_chains(room: Room) -> None:
    with room.open() as one:
        other = Writer(room.path, segment_bytes=1 << 20, segment_seconds=1e9)
        assert one.folder.name == "chain-000"
        assert other.path.name == "chain-001"
        other.close()
    with room.open() as again:
        assert again.folder.name == "chain-000"


@pytest.mark.parametrize("zeros", [0, 5000])
@pytest.mark.parametrize("torn", [b"", b'{"kind":"answers","seq"', b"x" * 5000, bytes(300) + b'"}]}\n{"kind":"sto'])
def test_a_line_that_a_crash_left_unfinished_is_cut_off_and_so_is_the_room_after_it(
    room: Room, torn: bytes, zeros: int
) -> None:
    path = room.made(2).segments[0]
    whole = path.read_bytes()
    path.write_bytes(whole + torn + bytes(zeros))
    assert room.verify().unfinished == len(torn)
    assert room.verify().problem == ""
    with room.open():
        pass
    starts = [record for record in records_of(room.chain) if isinstance(record, Start)]
    assert [start.cut for start in starts] == [0, len(torn)]
    assert path.read_bytes().startswith(whole)
    assert room.verify().problem == ""


def test_zeros_in_place_of_what_was_signed_are_no_crash(room: Room) -> None:
    path = room.made(4).segments[0]
    whole = path.read_bytes()
    at = whole.index(b"caller-1")
    path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    assert "missing" in room.verify().problem
    with pytest.raises(LedgerError, match="was signed"), room.open():
        pass
    assert len(path.read_bytes()) == len(whole)


def test_a_line_that_lacks_its_line_feed_alone_is_whole_and_stays(room: Room) -> None:
    path = room.made(2).segments[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with room.open():
        pass
    assert path.read_bytes().startswith(whole)
    assert room.verify().problem == ""


@pytest.mark.parametrize("end", [b'{"kind":"answers","seq"\n', b"\n", b"{}\n"])
def test_a_whole_line_that_does_not_follow_was_no_crash_and_nothing_is_written_after_it(room: Room, end: bytes) -> None:
    path = room.made(2).segments[0]
    before = path.read_bytes() + end
    path.write_bytes(before)
    with pytest.raises(LedgerError, match="garrison ledger verify"), room.open():
        pass
    assert path.read_bytes() == before


def test_a_changed_line_and_a_cut_end_are_noticed_at_the_start(room: Room) -> None:
    path = room.made(4).segments[0]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"caller-1", b"caller-x"))
    with pytest.raises(LedgerError, match="hash"), room.open():
        pass
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-4]))
    with pytest.raises(LedgerError, match="was signed"), room.open():
        pass


def test_a_file_that_was_begun_and_holds_nothing_is_begun_again(room: Room) -> None:
    room.made(2)
    (room.chain / "000000000999.jsonl").touch(0o600)
    with room.open() as ledger:
        assert fill(ledger, 1) == [True]
    assert not (room.chain / "000000000999.jsonl").exists()
    assert room.verify().problem == ""


def test_files_grow_no_larger_and_older_than_the_settings_say(room: Room) -> None:
    room.made(segment_mib=0.0005)
    parts = [next(iter(records_of_file(path))) for path in room.segments]
    assert isinstance(parts[0], Begin)
    assert len(parts) > 3
    assert all(isinstance(part, Segment) for part in parts[1:])
    assert room.verify().problem == ""
    with room.open(segment_hours=1e-9) as ledger:
        before = len(room.segments)
        fill(ledger, 1)
        wait(lambda: len(room.segments) > before)


def records_of_file(path: Path) -> Iterator[object]:
    alone = path.parent / "alone"
    alone.mkdir(exist_ok=True)
    (alone / path.name).write_bytes(path.read_bytes())
    found = list(records_of(alone))
    (alone / path.name).unlink()
    return iter(found)


@pytest.mark.parametrize("last", [False, True])
def test_a_file_with_zeros_in_its_first_line_is_kept(room: Room, last: bool) -> None:
    """It would be taken for one that was begun and never told of, and be made anew."""
    first = room.made(4).segments[0]
    path = first.with_name(segment_name(99)) if last else first
    spoilt = bytes(1) + first.read_bytes()[1:]
    path.write_bytes(spoilt)
    with pytest.raises(LedgerError, match="zeros"), room.open():
        pass
    assert path.read_bytes() == spoilt


def test_room_is_made_ahead_and_given_back(room: Room) -> None:
    """What lies on the disk while a server runs, and what when it has ended; a reader sees the same lines."""
    with room.open() as ledger:
        fill(ledger, 2)
        (path,) = room.segments
        before = path.stat().st_size
        text = path.read_bytes()
        assert text.endswith(bytes(1000))
        fill(ledger, 2)
        assert path.stat().st_size == before  # no new length, no new block
        assert room.verify().unfinished == 0
        assert len(list(answers_of(room.path))) == 12
    written = path.read_bytes()
    assert written.endswith(b"}\n")
    assert written.startswith(text.rstrip(b"\0"))
    assert len(written) < before


def test_many_batches_are_written_at_once(room: Room) -> None:
    """A slow disk: what comes while it synchronises waits for the next time together."""
    syncs: list[int] = []
    go = threading.Event()
    go.set()

    def slow(descriptor: int) -> None:
        syncs.append(descriptor)
        assert go.wait(PATIENT_SECONDS)
        os.fdatasync(descriptor)

    with room.open(slow) as ledger:
        begun = len(syncs)
        go.clear()
        threads = [threading.Thread(target=fill, args=(ledger, 1)) for _ in range(20)]
        threads[0].start()
        wait(lambda: len(syncs) == begun + 1)
        for thread in threads[1:]:
            thread.start()
        wait(lambda: ledger._writer._queue.qsize() == 19)
        go.set()
        for thread in threads:
            thread.join()
        assert len(syncs) == begun + 2
    assert room.verify().problem == ""
    assert room.verify().answers == 60


def test_what_the_disk_did_not_take_is_not_there_and_what_comes_later_is(room: Room) -> None:
    disk = FailingDisk()
    with room.open(disk) as ledger:
        assert fill(ledger, 2) == [True, True]
        disk.fails = True
        assert fill(ledger, 3) == [False] * 3
        assert "Input/output error" in ledger.why_not_ready()
        with pytest.raises(UnavailableError, match="Input/output error"):
            ledger.recorder("mlp", 1).check()
        with pytest.raises(UnavailableError):
            ledger.act("alarms.clear", caller="alice")
        disk.fails = False
        wait(lambda: not ledger.why_not_ready())
        assert fill(ledger, 1) == [True]
    report = room.verify()
    assert report.problem == ""
    assert report.answers == 9
    (outage,) = [record for record in records_of(room.chain) if isinstance(record, Outage)]
    assert outage.held >= 3
    assert outage.error == "Input/output error"
    assert len(room.segments) == 2  # what the system holds of the old file is not believed any more


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 600 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k,mode=700", "none", place], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_on_a_full_disk_nothing_is_lost_or_doubled_and_it_goes_on_when_there_is_room(
    small_disk: Path, bundles: object, room: Room
) -> None:
    room.path, room.chain = small_disk / "l", small_disk / "l" / "chain-000"
    room.folder = small_disk
    good: list[str] = []
    with room.open() as ledger:
        for k in range(4000):
            if not fill(ledger, 1, each=20)[0]:
                break
            good.append(str(k))
        else:
            pytest.fail("the disk was never full")
        assert "No space left" in ledger.why_not_ready()
        assert fill(ledger, 2) == [False, False]
        time.sleep(1.2)
        assert ledger.why_not_ready()  # room for one line is not enough to go on
        subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
        wait(lambda: not ledger.why_not_ready())
        assert fill(ledger, 2) == [True, True]
    report = room.verify()
    assert report.problem == ""
    assert report.answers == 20 * len(good) + 6


def test_what_is_written_is_let_go_of_before_more_comes(tmp_path: Path) -> None:
    class Held:
        """Stands for requests and their answers."""

    held, written = Held(), threading.Event()
    gone = weakref.ref(held)
    writer = Writer(tmp_path / "ledger", segment_bytes=1 << 20, segment_seconds=1e9)

    def make(chain: Chain, held: Held = held) -> bytes:
        assert isinstance(held, Held)
        return chain.add(Stop(chain.seq, writer.now()))

    writer.put(make, lambda _: written.set())
    del make, held
    assert written.wait(PATIENT_SECONDS)
    wait(lambda: gone() is None)
    writer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fails", [False, True])
def test_a_writer_that_has_ended_takes_no_more_questions(tmp_path: Path, fails: bool) -> None:
    def sync(_: int) -> None:
        if fails and threading.current_thread().name == "garrison-ledger":
            raise RuntimeError("a defect")

    writer = Writer(tmp_path / "ledger", segment_bytes=1 << 20, segment_seconds=1e9, sync=sync)
    assert writer.why_not() == ""
    if fails:
        writer.put(lambda chain: chain.add(Stop(chain.seq, writer.now())), lambda _: None)
    else:
        writer.close()
    wait(lambda: writer.why_not() == "the ledger is not written any more")
    if fails:
        writer.close()
