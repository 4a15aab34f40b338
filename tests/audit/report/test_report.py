"""The report: JSON that keeps its schema, a page that needs nothing else, tables that say what the JSON says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from tests.audit.worlds import World

from garrison.audit.arms import choose_arms
from garrison.audit.report import FORMATS, html, plots, tables
from garrison.audit.report import json as report_json
from garrison.audit.report.content import Report
from garrison.audit.report.write import load_format, paths_of, write_report
from garrison.audit.run import run_audit
from garrison.audit.targets import guarded
from garrison.errors import AuditError

REQUIRED = ("attack", "target", "metric", "value", "low", "high", "interval", "queries", "seeds")


@pytest.fixture(scope="module")
def report(world: World) -> Report:
    bundle = world.opened(world.bundle)
    arms = choose_arms(guarded(bundle, world.key), reference=bundle, baseline=None, key=world.key)
    return run_audit(world.plan, arms, world.data)


@pytest.fixture(scope="module")
def bare(world: World) -> Report:
    return run_audit(world.plan, choose_arms(guarded(world.opened(world.bundle), world.key)), world.data)


def test_the_json_keeps_its_schema(report: Report, bare: Report) -> None:
    schema = report_json.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for one in (report, bare):
        found = json.loads(report_json.render(one))
        jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)
        for finding in found["findings"]:
            assert set(REQUIRED) <= finding.keys()
            assert any(name in finding["target"] for name in ("undefended", "outlier-exposure", "defended"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("findings", 0, "target"), "none"),
        (("findings", 0, "value"), "high"),
        (("findings", 0, "colour"), "red"),
        (("limits",), []),
        (("created",), "yesterday"),
        (("controls", 0, "target"), "defended"),
    ],
)
def test_the_schema_refuses_what_is_no_report(report: Report, path: tuple[Any, ...], value: Any) -> None:
    found = json.loads(report_json.render(report))
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, report_json.schema(), cls=jsonschema.Draft202012Validator)


def test_clone_figures_are_fractions(report: Report) -> None:
    found = json.loads(report_json.render(report))
    shares = [f for f in found["findings"] if f["metric"] in {"clone_accuracy", "fidelity"}]
    assert shares
    assert all(0 <= f["value"] <= 1 and f["unit"] == "fraction" for f in shares)
    beyond = dict(found)
    beyond["findings"] = [dict(shares[0], value=41.8)]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(beyond, report_json.schema(), cls=jsonschema.Draft202012Validator)


def test_the_json_reads_back(report: Report) -> None:
    assert report_json.parse(report_json.render(report)) == report
    with pytest.raises(AuditError, match="no report"):
        report_json.parse(b"{}")
    other = msgspec.structs.replace(report, format="garrison-report/9")
    with pytest.raises(AuditError, match="garrison-report/9"):
        report_json.parse(report_json.render(other))


def test_the_page_needs_nothing_else(report: Report, bare: Report) -> None:
    for one in (report, bare):
        page = html.render(one).decode()
        assert "<script" not in page
        assert "http:" not in page
        assert "https:" not in page
        assert not re.search(r"\b(src|action|data|poster|srcset)\s*=", page)
        assert not re.search(r"@import|@font-face", page)
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_page_shows_the_figures_and_the_limits(report: Report) -> None:
    page = html.render(report).decode()
    assert page.count("<svg") == 2
    assert page.count("<table") == 6
    for sentence in report.limits:
        assert escaped(sentence) in page
    accuracy = report.find("defended", "served_accuracy")
    assert accuracy is not None
    assert accuracy.value is not None
    assert f"{100 * accuracy.value:.1f} %" in page
    assert escaped(report.headline) in page
    assert "prefers-color-scheme: dark" in page


def escaped(text: str) -> str:
    return (
        text.replace("&", "&amp;").replace("'", "&#39;").replace('"', "&#34;").replace("<", "&lt;").replace(">", "&gt;")
    )


def test_foreign_text_is_escaped(report: Report) -> None:
    evil = "<script>alert(1)</script>"
    cards = {name: msgspec.structs.replace(card, model=evil, where=evil) for name, card in report.targets.items()}
    page = html.render(msgspec.structs.replace(report, targets=cards, headline=evil)).decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_figures_take_the_pages_colour_and_are_the_same_again(report: Report, bare: Report) -> None:
    for draw in (plots.clones_figure, plots.similarity_figure):
        svg = draw(report)
        assert "currentColor" in svg
        assert plots.INK not in svg
        assert draw(report) == svg
    assert plots.similarity_figure(bare) == ""
    assert "<svg" in plots.clones_figure(bare)


def test_the_calibrated_tau_and_the_arms_are_named_in_the_figures(report: Report) -> None:
    assert "calibrated tau, 0.6" in plots.similarity_figure(report)
    for name in ("defended, as served, soft", "control: random labels", "a constant answer"):
        assert name in plots.clones_figure(report)


def test_the_main_table_says_what_the_json_says(report: Report) -> None:
    table = tables.trade_off(report)
    row = next(row for row in table.rows if row[0].text == "defended, as served")
    finding = report.find("defended", "clone_accuracy", answers="soft", budget=80)
    assert finding is not None
    assert finding.value is not None
    assert row[table.head.index("clone, 80 soft: accuracy")].text == f"{100 * finding.value:.1f} %"
    assert row[-1] == tables.Cell("$0.16", "80 queries")
    assert [r[0].text for r in table.rows][-1] == "control: random labels"
    for each in (table, tables.honest(report), tables.strangers(report), tables.reaching(report)):
        assert {len(r) for r in each.rows} == {len(each.head)}


def test_every_format_is_written_whole(report: Report, tmp_path: Path) -> None:
    assert set(FORMATS) == {"json", "html"}
    written = write_report(report, tmp_path / "out")
    assert sorted(path.name for path in written) == ["report.html", "report.json"]
    assert (tmp_path / "out" / "report.json").read_bytes() == load_format("json")(report)
    assert paths_of(tmp_path / "mine.html")["json"] == tmp_path / "mine.json"
    (tmp_path / "odd.html").mkdir()
    assert paths_of(tmp_path / "odd.html")["json"] == tmp_path / "odd.html" / "report.json"
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot be written"):
        write_report(report, tmp_path / "file")


def test_the_headline_names_price_chance_and_control(report: Report) -> None:
    text = report.headline
    assert re.match(r"For \$0\.(08 \(40|16 \(80) queries at \$2\.00 per 1,000\)", text)
    for part in (
        "from the service a clone that is right on",
        "a constant answer",
        "random labels",
        "The same money buys",
    ):
        assert part in text
