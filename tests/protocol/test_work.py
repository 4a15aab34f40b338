from __future__ import annotations

import pytest

from garrison.protocol import work

KEY, BODY, NOW = bytes(range(32)), b"a question", 1_700_000_000


def solve(rows: int = 4, bits: int = 6, caller: str = "alice", body: bytes = BODY) -> str:
    return work.solve(KEY, caller, body, rows=rows, bits=bits, when=NOW)


def paid(proof: str, bits: int = 6, key: bytes = KEY, caller: str = "alice", body: bytes = BODY) -> int:
    found = work.read(proof)
    assert found is not None
    return work.rows_paid(work.digest(key, caller, body, *found), bits)


def test_a_proof_pays_for_the_rows_that_it_was_made_for() -> None:
    for rows in (1, 2, 7, 64):
        assert paid(solve(rows)) >= rows
    assert paid(solve(1, bits=0), bits=0) >= 1


def test_it_takes_rows_times_two_to_the_bits_hashes_on_average() -> None:
    """A digest pays for n rows at 2^bits a row with chance 1 in n x 2^bits: here 1 in 32, 3,200 of 102,400 expected."""
    good = sum(work.rows_paid(work.digest(KEY, "", b"%d" % k, NOW, 0), 3) >= 4 for k in range(102_400 // 10))
    assert 240 <= good <= 400  # 320 expected, deviation 18


def test_a_proof_of_anything_else_pays_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each other digest pays with chance 1 in 16,384: here of a proof for which none does."""
    monkeypatch.setattr("garrison.protocol.work.secrets.randbelow", lambda _: 0)
    proof = solve(256)
    when, counter = proof.split(".")
    others = [
        paid(proof, key=bytes(32)),
        paid(proof, caller="bob"),
        paid(proof, body=BODY + b"!"),
        paid(f"{int(when) + 1}.{counter}"),
        paid(f"{when}.{int(counter) + 1}"),
    ]
    assert max(others) < 256
    assert paid(proof) >= 256  # control


def test_the_same_question_has_another_proof_each_time() -> None:
    assert len({solve() for _ in range(8)}) == 8


@pytest.mark.parametrize(
    "wrong",
    ["", "1", "1.", ".1", "1.2.3", "-1.2", "1.2 ", "1e3.2", "1.9223372036854775808", "1" * 13 + ".1", "\u0661.1"],
)
def test_what_is_no_proof(wrong: str) -> None:
    assert work.read(wrong) is None


def test_work_without_end_is_not_begun() -> None:
    with pytest.raises(ValueError, match="hashes"):
        solve(2**20, bits=40)
    with pytest.raises(ValueError, match="hashes"):
        solve(0)


def test_progress_is_told_of_long_work() -> None:
    told: list[tuple[int, float]] = []
    work.solve(KEY, "", BODY, rows=1, bits=18, when=NOW, progress=lambda made, of: told.append((made, of)))
    assert all(of == 2**18 for _, of in told)
    assert [made for made, _ in told] == [65_536 * (k + 1) for k in range(len(told))]


def test_what_it_costs_is_measured() -> None:
    assert work.hashes_a_second(0.01) > 1_000
    assert "2^12 hashes a row" in work.work_in_words(12)
