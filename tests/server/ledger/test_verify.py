"""Whatever is done to a ledger by who has the disk is found, and named; the control is the ledger as it was written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.server.ledger.conftest import Room, fill

from garrison.crypto.signing import AnswerSigner
from garrison.enclave.witness import Witness, make_witness
from garrison.errors import ConfigError, LedgerError
from garrison.protocol.checkpoint import Place, SignedCheckpoint
from garrison.server.ledger.reader import latest_checkpoint
from garrison.server.ledger.records import GENESIS, Answers, Chain, Checkpoint, Enclave, Entry, Record, read_body, split
from garrison.server.ledger.retention import prune
from garrison.server.ledger.trust import KeyTrust, policy_of
from garrison.server.ledger.verify import verify_ledger

LINE = 7
"""Of entries 11 to 13, counted from 0: begin, start, checkpoint, enclave, checkpoint, answers 5 to 7, 8 to 10, 11 to 13, checkpoint ..."""


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def write(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def rebuilt(lines: list[bytes], change: Callable[[Record], Record | None]) -> list[bytes]:
    """Lines with some records changed, and all hashes made to fit."""
    chain, made = Chain(), []
    for line in lines:
        record = change(read_body(split(line)[0]))
        if record is not None:
            made.append(chain.add(msgspec.structs.replace(record, seq=chain.seq))[:-1])
    return made


def signed_anew(records: list[Record], witness: Witness) -> tuple[list[bytes], SignedCheckpoint | None]:
    """Lines for these records, each checkpoint signed by this witness over the line before it; and the last checkpoint."""
    chain, made, latest, bodies = Chain(), list[bytes](), None, b""
    for record in records:
        now = msgspec.structs.replace(record, seq=chain.seq)
        if isinstance(now, Checkpoint):
            ledger = bytes.fromhex(now.signed.checkpoint.ledger)
            latest = witness.sign(ledger, chain.seq - 1, chain.head, GENESIS, bodies)
            now = msgspec.structs.replace(now, signed=latest)
        made.append(chain.add(now)[:-1])
        bodies += hashlib.sha256(split(made[-1])[0]).digest()
    return made, latest


def test_a_ledger_as_it_was_written_holds(room: Room) -> None:
    report = room.made().verify()
    assert report.problem == ""
    assert (report.first, report.answers, report.checkpoints, report.unsigned) == (0, 18, 5, 0)
    assert (report.late, report.tardy) == ([], [])
    assert report.crashes == []
    assert list(report.keys.values()) == [f"evidence of sim, measurement {measurement(room)}"]


def measurement(room: Room) -> str:
    found = re.search(r"measurement (\w+)", next(iter(room.verify().keys.values())))
    return "" if found is None else found[1]


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a byte": (lambda x: [*x[:LINE], x[LINE].replace(b"caller-2", b"caller-9"), *x[LINE + 1 :]], "entry 11 "),
    "a hash": (lambda x: [*x[:LINE], x[LINE][:-4] + b'0"}', *x[LINE + 1 :]], "entry 11 "),
    "missing": (lambda x: [*x[:LINE], *x[LINE + 1 :]], "entry 11 "),
    "swapped": (lambda x: [*x[: LINE - 1], x[LINE], x[LINE - 1], *x[LINE + 1 :]], "entry 8 "),
    "twice": (lambda x: [*x[:LINE], x[LINE], *x[LINE:]], "entry 14 "),
    "nonsense": (lambda x: [*x[:LINE], b"{}", *x[LINE:]], "entry 11 "),
    "no line": (lambda x: [*x[:LINE], b"", *x[LINE:]], "entry 11 "),
    "first line": (lambda x: x[1:], "line 1"),
    "cut before what was signed": (lambda x: x[:LINE], "cut off"),
    "empty": (lambda _: [], "it holds no line"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_who_changes_a_line_is_found(room: Room, name: str) -> None:
    change, said = CHANGES[name]
    path = room.made().segments[0]
    write(path, change(lines_of(path)))
    assert said in room.verify().problem


def test_every_single_changed_byte_is_found(room: Room) -> None:
    path = room.made(2).segments[0]
    whole = path.read_bytes()
    signed = whole.rindex(b'"kind":"stop"')
    for at in range(0, signed, 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert room.verify().problem, at


def test_hashes_that_were_made_to_fit_do_not_fit_what_was_signed(room: Room) -> None:
    path = room.made().segments[0]

    def forge(record: Record) -> Record:
        if isinstance(record, Answers) and record.seq == 11:
            return msgspec.structs.replace(record, entries=(Entry("nobody", 1), *record.entries[1:]))
        return record

    write(path, rebuilt(lines_of(path), forge))
    problem = room.verify().problem
    assert "entries 4 to 13 were changed after they were signed" in problem


def test_who_takes_all_signatures_out_is_found(room: Room) -> None:
    path = room.made().segments[0]
    write(path, rebuilt(lines_of(path), lambda record: None if isinstance(record, Checkpoint) else record))
    (room.chain / "latest.json").unlink()
    assert "nothing in it is signed" in room.verify().problem


def test_signatures_of_another_key_do_not_count(room: Room) -> None:
    """Whoever has the disk writes a whole ledger anew and signs it himself."""
    path = room.made().segments[0]
    mine = make_witness(AnswerSigner(), "0" * 64, "0" * 64, ())
    lines, latest = signed_anew([read_body(split(line)[0]) for line in lines_of(path)], mine)
    write(path, lines)
    (room.chain / "latest.json").write_bytes(msgspec.json.encode(latest))
    assert "which nothing vouches for" in room.verify().problem
    (report,) = verify_ledger(room.path, KeyTrust(unsafe_any_key=True))
    assert report.problem == ""  # the control: who trusts every key is deceived


def test_evidence_must_pass_the_policy_and_be_of_the_trusted_owner(room: Room) -> None:
    room.made(2)
    for trust, said in (
        (KeyTrust(), "no policy says"),
        (KeyTrust(policy_of(None, (room.owner,))), "technology"),
        (KeyTrust(policy_of(None, ("0" * 64,), allow_simulated=True)), "owner"),
    ):
        (report,) = verify_ledger(room.path, trust)
        assert "nothing vouches for" in report.problem
        assert said in report.problem
    key = room.enclave.card.public_key.hex()
    (report,) = verify_ledger(room.path, KeyTrust(keys=frozenset({key})))
    assert report.problem == ""


def test_an_end_that_was_cut_off_is_seen_beside_the_chain_or_by_a_checkpoint_kept_elsewhere(room: Room) -> None:
    room.made()
    kept = latest_checkpoint(room.chain)
    assert kept is not None
    path = room.segments[0]
    whole = lines_of(path)
    cut = next(i for i, line in enumerate(whole) if i > LINE and b'"checkpoint"' in line) + 1
    write(path, whole[:cut])
    assert "cut off" in room.verify().problem
    middle = read_body(split(whole[cut - 1])[0])
    assert isinstance(middle, Checkpoint)
    (room.chain / "latest.json").write_bytes(msgspec.json.encode(middle.signed))
    assert room.verify().problem == ""  # what nobody can see who has nothing but the disk
    assert "cut off" in room.verify(anchors=[kept]).problem


def test_a_checkpoint_of_another_history_is_found(room: Room) -> None:
    room.made()
    kept = latest_checkpoint(room.chain)
    assert kept is not None
    other = msgspec.structs.replace(kept.checkpoint, head="0" * 64)
    signed = room.enclave.service._signer.sign(other.signed_bytes())
    assert room.verify(anchors=[kept]).problem == ""
    assert "of others" in room.verify(anchors=[SignedCheckpoint(other, kept.key, signed)]).problem
    assert "signature" in room.verify(anchors=[SignedCheckpoint(other, kept.key, kept.signature)]).problem
    elsewhere = msgspec.structs.replace(kept.checkpoint, ledger="0" * 32)
    assert "not here" in room.verify(anchors=[SignedCheckpoint(elsewhere, kept.key, signed)]).problem


def test_an_answer_after_the_stop_was_added(room: Room) -> None:
    path = room.made(2).segments[0]
    chain = Chain()
    for line in lines_of(path):
        record = read_body(chain.follow(line))
        chain.seq = record.seq + record.entries_count
    with path.open("ab") as file:
        file.write(chain.add(Answers(chain.seq, 1.0, "mlp", 1, (Entry("nobody", 1),))))
    assert "was added: no server had started" in room.verify().problem


def test_what_a_later_enclave_signed_is_named(room: Room) -> None:
    with room.open() as ledger:
        fill(ledger, 1)
        ledger.sign()
        fill(ledger, 2)
        room.enclave.restart()
        ledger.sign()
    report = room.verify()
    assert report.problem == ""
    assert len(report.keys) == 2
    assert report.late == [(9, 14)]


def false_records(room: Room, seconds: float = 0.0) -> tuple[list[Record], KeyTrust]:
    """A ledger written anew in the name of an enclave that was started just now: its line stands where that of the true one stood."""
    records = [read_body(split(line)[0]) for line in lines_of(room.made().segments[0])]
    room.enclave.restart()
    key = room.enclave.card.public_key.hex()
    for k, record in enumerate(records):
        if isinstance(record, Enclave):
            records[k] = msgspec.structs.replace(record, key=key)
        elif isinstance(record, Answers):
            entries = tuple(msgspec.structs.replace(entry, caller="mallory") for entry in record.entries)
            records[k] = msgspec.structs.replace(record, entries=entries, time=record.time - seconds)
    return records, KeyTrust(keys=frozenset({key}))


def put(room: Room, records: list[Record]) -> None:
    lines, latest = signed_anew(records, room.enclave.service.witness)
    write(room.segments[0], lines)
    (room.chain / "latest.json").write_bytes(msgspec.json.encode(latest))


def test_who_has_a_ledger_written_anew_signed_by_another_enclave_cannot_hide_that_it_came_late(room: Room) -> None:
    records, trust = false_records(room)
    last = max(k for k, record in enumerate(records) if isinstance(record, Checkpoint))
    put(room, [record for k, record in enumerate(records) if k == last or not isinstance(record, Checkpoint)])
    (report,) = verify_ledger(room.path, trust)
    assert report.problem == ""
    assert report.late == [(3, 20)]


@pytest.mark.parametrize(("seconds", "seen"), [(0.0, []), (3600.0, [(5, 13), (15, 23)])])
def test_nor_by_having_it_signed_bit_by_bit_but_for_what_happened_just_now(
    room: Room, seconds: float, seen: list[tuple[int, int]]
) -> None:
    """The limit is the control: who forges as it happens, with the times of now, is the server itself."""
    records, trust = false_records(room, seconds)
    put(room, records)
    (report,) = verify_ledger(room.path, trust)
    assert (report.problem, report.late, report.tardy) == ("", [], seen)


def test_what_an_enclave_signed_before_must_stand_in_the_chain(room: Room) -> None:
    path = room.made().segments[0]
    lines = lines_of(path)
    at = max(k for k, line in enumerate(lines) if b'"kind":"checkpoint"' in line)
    record = read_body(split(lines[at])[0])
    assert isinstance(record, Checkpoint)
    said = record.signed.checkpoint
    assert said.before is not None
    for change, told in (
        ({"before": Place(said.before.at, "0" * 64)}, "had signed others before"),
        ({"before": Place(said.at, said.head)}, "contradicts itself"),
        ({"since": said.at + 1}, "contradicts itself"),
        ({}, ""),
    ):
        other = msgspec.structs.replace(said, **change)
        signed = SignedCheckpoint(other, record.signed.key, room.enclave.service._signer.sign(other.signed_bytes()))
        chain = Chain(record.seq, split(lines[at - 1])[1])
        write(path, [*lines[:at], chain.add(msgspec.structs.replace(record, signed=signed))[:-1]])
        (room.chain / "latest.json").write_bytes(msgspec.json.encode(signed))
        assert told in room.verify().problem
        assert bool(told) == bool(room.verify().problem)


def test_a_whole_chain_that_was_taken_away_is_missed(room: Room) -> None:
    room.made(2)
    with room.open() as first, room.open() as second:
        assert (first.folder.name, second.folder.name) == ("chain-000", "chain-001")
    with room.open():
        pass
    trust = room.trust
    assert [report.problem for report in verify_ledger(room.path, trust)] == ["", ""]
    away = room.path.parent / "away"
    (room.path / "chain-001").rename(away)
    (report,) = verify_ledger(room.path, trust)
    assert "it stood beside this one" in report.problem
    (alone,) = verify_ledger(room.chain, trust)
    assert alone.problem == "", "one chain alone is one chain alone"
    away.rename(room.path / "chain-002")
    assert any("chain-001 is missing" in report.problem for report in verify_ledger(room.path, trust))


def test_what_came_while_the_enclave_signed_is_signed_next(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    with room.open() as ledger:
        fill(ledger, 1)
        sign = room.enclave.witness

        def slowly(chain: bytes, at: int, head: bytes, start: bytes, bodies: bytes) -> SignedCheckpoint:
            monkeypatch.undo()
            fill(ledger, 1)
            return sign(chain, at, head, start, bodies)

        monkeypatch.setattr(room.enclave, "witness", slowly)
        ledger.sign()
        assert room.verify().unsigned == 3
        ledger.sign()
        assert room.verify().unsigned == 0


def test_files_that_are_missing_or_do_not_follow_are_found(room: Room) -> None:
    room.made(segment_mib=0.0005)
    first, second, third, *rest = room.segments
    assert rest
    assert room.verify().problem == ""
    hidden = second.read_bytes()
    second.unlink()
    assert "are missing" in room.verify().problem
    second.write_bytes(hidden + b"x")
    assert "follow the last line" in room.verify().problem
    second.write_bytes(hidden + bytes(9) + b"x")
    assert "follow the last line" in room.verify().problem
    second.write_bytes(hidden + bytes(9))  # room that a crash has left there
    assert room.verify().problem == ""
    second.write_bytes(b"")
    assert "is empty" in room.verify().problem
    second.write_bytes(third.read_bytes())
    assert room.verify().problem
    second.write_bytes(hidden)
    last = room.segments[-1].read_bytes()
    for path in room.segments[-3:]:
        path.unlink()
    assert "cut off" in room.verify().problem
    (room.chain / first.name.replace("000000000000", "000000000500")).write_bytes(last)
    assert room.verify().problem


def test_pruned_files_leave_stubs_that_verify_and_cannot_lie(room: Room) -> None:
    room.made(segment_mib=0.0005)
    before = room.verify()
    dropped = list(prune(room.chain, 2.0**40))
    assert len(dropped) == len(list(room.chain.glob("*.pruned"))) > 2
    assert len(room.segments) >= 1
    after = room.verify()
    assert after.problem == ""
    assert (after.first, after.last) == (before.first, before.last)
    assert after.pruned == dropped[-1][1] + 1
    assert list(prune(room.chain, 2.0**40)) == []
    stub = sorted(room.chain.glob("*.pruned"))[1]
    good = stub.read_bytes()
    for lie in ({"last": 10_000}, {"head": "0" * 64}, {"before": "0" * 64}, {"first": 1}, {"ledger": "0" * 32}):
        stub.write_bytes(msgspec.json.encode(msgspec.json.decode(good) | lie))
        assert room.verify().problem, lie
    stub.unlink()
    assert "missing" in room.verify().problem


def test_a_file_in_the_middle_cannot_pass_for_a_pruned_one(room: Room) -> None:
    room.made(segment_mib=0.0005)
    kept = {path: path.read_bytes() for path in room.segments}
    assert len(list(prune(room.chain, 2.0**40))) > 2
    oldest = min(kept)
    oldest.write_bytes(kept[oldest])
    oldest.with_suffix(".pruned").unlink()
    assert "pruned after an older file" in room.verify().problem


def test_a_file_that_does_not_hold_is_not_dropped(room: Room) -> None:
    room.made(segment_mib=0.0005)
    path = next(path for path in room.segments if b"caller-" in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"caller-", b"nobody-"))
    with pytest.raises(LedgerError, match="it is not dropped"):
        list(prune(room.chain, 2.0**40))
    assert path.exists()


def test_there_must_be_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no ledger"):
        verify_ledger(tmp_path, KeyTrust())
    with pytest.raises(ConfigError, match="garrison serve --ledger"):
        verify_ledger(tmp_path / "nowhere", KeyTrust())
