"""Levels of isolation: from what was probed, never from what was asked for."""

from __future__ import annotations

import pytest

from garrison.enclave.levels import (
    BASIC,
    FULL,
    LEVELS,
    SECRET,
    check_level,
    isolation_name,
    level_reached,
    process_level,
)
from garrison.errors import IsolationError


def having(*names: str) -> dict[str, str]:
    return dict.fromkeys(SECRET, "") | dict.fromkeys(names, "yes")


@pytest.mark.parametrize(
    ("names", "level"),
    [
        (SECRET, "process-secret-heap"),
        (FULL, "process"),
        (BASIC, "process-basic"),
        (BASIC[1:], "process-weak"),
        ((), "process-weak"),
    ],
)
def test_the_level_is_the_highest_that_is_whole(names: tuple[str, ...], level: str) -> None:
    assert process_level(having(*names)) == level


@pytest.mark.parametrize("missing", FULL)
def test_one_missing_step_is_named_and_lowers_the_level(missing: str) -> None:
    name = isolation_name(having(*(set(SECRET) - {missing})))
    assert name.startswith(("process-basic: without ", "process-weak: without "))
    assert level_reached(name, "sim") in {"process-basic", "none"}
    with pytest.raises(IsolationError, match="mend this"):
        check_level("process", name, "sim", having(*(set(SECRET) - {missing})), {missing: "mend this"})


def test_a_level_asks_for_no_more_than_itself() -> None:
    for at, reached in enumerate(LEVELS[:-1]):
        for below in LEVELS[: at + 1]:
            check_level(below, reached, "sim", having(*SECRET), {})
        for above in LEVELS[at + 1 :]:
            with pytest.raises(IsolationError, match=f"'{above}' is required"):
                check_level(above, reached, "sim", having(), {})


def test_only_hardware_evidence_reaches_the_highest_level() -> None:
    assert level_reached("process-secret-heap", "snp") == "hardware"
    for claimed in ("hardware", "hardware: really", "moat"):
        assert level_reached(claimed, "sim") == "none"
