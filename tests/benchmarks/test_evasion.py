"""What a run of hours has made is there whole or not at all, and nothing stands in for what was not made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import evasion


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evasion, "OUT", tmp_path)
    return tmp_path


def test_what_was_made_is_not_made_again(out: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"alarmed": len(made)}

    assert evasion.kept("benign", make) == evasion.kept("benign", make) == evasion.kept("benign") == {"alarmed": 1}
    assert [path.name for path in out.iterdir()] == ["benign.json"]


def test_what_was_not_made_is_asked_for_and_nothing_is_left_in_its_place(out: Path) -> None:
    """A page made too early once left an empty file, and from then on nobody measured."""
    with pytest.raises(SystemExit, match="--only benign makes it"):
        evasion.kept("benign")
    assert not [*out.iterdir()]
    assert evasion.kept("benign", lambda: {"alarmed": 1}) == {"alarmed": 1}


def test_a_full_disk_leaves_what_was_there(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = out / "http.json"
    evasion.keep(path, {"first": 1})

    def half(self: Path, text: str) -> int:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        evasion.keep(path, {"first": 1, "second": 2})
    assert json.loads(path.read_text()) == {"first": 1}


def test_more_pictures_are_measured_and_as_many_are_kept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def arm(*given: object, labels: bool) -> dict[str, object]:
        count = len(given[3][0])  # type: ignore[index]
        measured.append(count)
        return {"pictures": count, "queries": []}

    monkeypatch.setattr(evasion, "right_pictures", lambda count: (np.zeros((count, 1)), np.zeros(count)))
    monkeypatch.setattr(evasion, "bundle", lambda: out / "bundle")
    monkeypatch.setattr(evasion, "_http_arm", arm)
    for pictures in (2, 2, 3):
        evasion.over_http(pictures)
    assert measured == [2] * 6 + [3] * 6
    assert {one["pictures"] for one in evasion.kept("http").values()} == {3}


def test_an_unknown_part_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["evasion", "--only", "audits,page"])
    with pytest.raises(SystemExit):
        evasion.main()
    assert "found audits" in capsys.readouterr().err
