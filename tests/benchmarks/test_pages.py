"""The parts of docs/benchmarks.md."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from benchmarks.bench import PARTS

from benchmarks import pages

PAGE = "# B\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nbetween\n<!-- bench:b -->\nkeep\n<!-- /bench:b -->\n"


def test_one_part_is_replaced_and_the_rest_stays() -> None:
    found = pages.replaced(PAGE, "a", "new\n")
    assert found == PAGE.replace("old", "new")
    assert pages.replaced(found, "a", "new") == found


@pytest.mark.parametrize(
    "page",
    [
        "# no part at all",
        PAGE.replace("<!-- /bench:a -->", ""),
        PAGE + "<!-- bench:a -->\nagain\n<!-- /bench:a -->\n",
    ],
)
def test_a_page_without_exactly_one_such_part_is_an_error(page: str) -> None:
    with pytest.raises(pages.PageError, match="bench:a"):
        pages.replaced(page, "a", "new")


def test_a_part_is_written_to_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    pages.write("b", "written", page)
    assert "written" in page.read_text()
    assert "old" in page.read_text()


def test_the_page_has_a_part_for_each_benchmark() -> None:
    page = pages.PAGE.read_text()
    for part in PARTS:
        assert page.count(pages.markers(part.name)[0]) == 1, part.name
        assert f"| `{part.name}` |" in page


def test_what_made_a_part_names_no_machine() -> None:
    made = pages.made("make bench")
    assert "`make bench`" in made
    assert "cores" in made
    assert platform.node() not in made
