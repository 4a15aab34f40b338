"""The page on drift: one file, every text escaped, no address of anybody else."""

from __future__ import annotations

from garrison.audit.report.drift import page
from garrison.guard.drifting.report import ColumnShift, DriftAlarm


def test_a_page_shows_histograms_and_alarms_and_escapes() -> None:
    column = ColumnShift("<b>age</b> $x", 0.2, 0.1, 3.0, False, (1.0, 2.0), (0.5, 0.3, 0.2, 0.0), (0.1, 0.3, 0.6, 0.0))
    bare = ColumnShift("bare", 0.0, 0.0, 0.0, True)
    alarm = DriftAlarm(1, "psi", "<i>age</i>", 0.2, 0.1, 512, 0.0, True, ("<script>",), ("<img>",))
    text = page("Drift of <m>", (("rows", "<5>"),), (column, bare), (alarm,)).decode()
    for raw in ("<b>age", "<i>age", "<script>", "<img>", "<m>", "<5>"):
        assert raw not in text
    assert "&lt;script&gt;" in text
    assert "&lt;img&gt;" in text
    assert text.count("<svg") == 1
    assert "http" not in text
    assert "<svg" not in page("nothing", (), (bare,)).decode()
