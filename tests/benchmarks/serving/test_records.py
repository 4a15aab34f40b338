"""What was measured outlives an interruption."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving.records import Book, Key, Record, fingerprint


def record(number: int, arm: str = "guarded") -> Record:
    return Record("guard", "lenet", 32, number, arm, 100.0, 1.0, 2.0, 50.0, 300)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    book = Book(tmp_path, "same")
    book.add([record(0), record(0, "unguarded")])
    again = Book(tmp_path, "same")
    assert again.records == [record(0), record(0, "unguarded")]
    assert again.has(Key("guard", "lenet", 32, 0))
    assert not again.has(Key("guard", "lenet", 32, 1))
    assert not again.has(Key("guard", "lenet", 1, 0))


def test_a_round_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    book = Book(tmp_path, "same")
    book.add([record(0)])
    book.add([record(1), record(1, "unguarded")])
    file = tmp_path / "rounds.jsonl"
    file.write_text(file.read_text()[:-30])
    again = Book(tmp_path, "same")
    assert again.records == [record(0)]
    again.add([record(1)])
    assert Book(tmp_path, "same").records == [record(0), record(1)]


def test_other_code_or_settings_begin_anew(tmp_path: Path) -> None:
    Book(tmp_path, "one").add([record(0)])
    assert Book(tmp_path, "other").records == []
    assert (tmp_path / "rounds.old.jsonl").exists()
    Book(tmp_path, "other").add([record(0)])
    assert Book(tmp_path, "other", fresh=True).records == []


def test_the_fingerprint_tells_settings_apart() -> None:
    assert fingerprint(1) == fingerprint(1) != fingerprint(2)
