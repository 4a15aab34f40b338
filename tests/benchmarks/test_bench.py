"""`make bench` and its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.bench import Part, block, chosen, run_all

from benchmarks import bench, pages


def test_parts_are_chosen_by_name_in_their_order() -> None:
    assert [part.name for part in chosen("sealed,serving", "")] == ["serving", "sealed"]
    assert "theft" not in [part.name for part in chosen("", "theft")]
    assert len(chosen("", "")) == len(bench.PARTS)
    with pytest.raises(ValueError, match="no part 'speed'"):
        chosen("speed", "")


def test_a_failing_part_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:good -->\nold\n<!-- /bench:good -->\n<!-- bench:bad -->\nkept\n<!-- /bench:bad -->\n")
    write = pages.write
    monkeypatch.setattr(pages, "write", lambda name, text: write(name, text, page))
    parts = [
        Part("bad", "", ("-c", "raise SystemExit(3)")),
        Part("missing", "", ("-c", ""), needs=(tmp_path / "not-there",), made_by="theft"),
        Part("good", "", ("-c", "print('{\"us\": 5}')")),
    ]
    found = run_all(parts)
    assert found["bad"] == "exit code 3"
    assert "ONLY=theft" in found["missing"]
    assert found["good"] == ""
    assert '"us": 5' in page.read_text()
    assert "kept" in page.read_text()


def test_what_is_no_json_is_shown_as_text() -> None:
    part = bench.PARTS[0]
    assert "```text\nplain words\n```" in block(part, "plain words\n")
    assert "```json" in block(part, "{}")


def test_every_part_is_there_to_be_run() -> None:
    for part in bench.PARTS:
        name = part.words[1].replace(".", "/") if part.words[0] == "-m" else part.words[0].removesuffix(".py")
        assert (bench.ROOT / f"{name}.py").exists() or (bench.ROOT / name / "__main__.py").exists(), part.name
