"""A budget from a report: of this model alone, from the thief who needs the fewest answers, and honest where nothing was reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.audit.worlds import GUARD, World, sealed, served
from tests.models import BOUNDS, LABELS, PIXELS, RELEASE, images, mlp

from garrison.api.budgets import derived_draft
from garrison.attacks.base import Finding
from garrison.audit.budgeting import derive
from garrison.audit.plan import parse_plan, priced
from garrison.audit.report.content import DataCard, Report, TargetCard
from garrison.audit.report.json import render
from garrison.audit.targets import HttpTarget, ServiceTarget, guarded, unguarded
from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import verify
from garrison.client import Client
from garrison.crypto.owner import OwnerKey
from garrison.errors import ConfigError, WrongReportError
from garrison.guard.defenses.budget import Budget
from garrison.sealing.derived import EVERY_DAY, digests_of
from garrison.sealing.draft import Draft
from garrison.types import DefenseSpec, Task

MODEL, ANSWERS, OTHER = "a" * 64, "b" * 64, "c" * 64
PLAN = parse_plan("name = 'small'\n[[attacks]]\nbudgets = [40]\n", "a test")


def card(model: str = MODEL, answers: str = ANSWERS, chain: tuple[str, ...] | None = None) -> TargetCard:
    return TargetCard(
        note="",
        where="in-process",
        model="m",
        version="1",
        manifest_digest="",
        guard_digest="",
        chain=chain,
        overridden=False,
        model_digest=model,
        answers_digest=answers,
    )


def fidelity(
    queries: int,
    value: float | None,
    high: float | None = None,
    *,
    target: str = "defended",
    attack: str = "knockoff",
    cover: int = 0,
) -> Finding:
    return Finding(
        attack=attack,
        target=target,
        metric="fidelity",
        value=value,
        low=None,
        high=high,
        interval="",
        queries=queries,
        seeds=3,
        budget=queries,
        answers="soft",
        cover=cover,
    )


def report(*findings: Finding, own: bool = True, targets: dict[str, TargetCard] | None = None) -> Report:
    data = {"in-distribution": DataCard(source="s", rows=1, shape=(1,), sha256=OTHER)} if own else {}
    return Report(
        garrison="0",
        created="2026-01-01T00:00:00Z",
        headline="",
        plan=PLAN,
        data=data,
        targets=targets or {"defended": card()},
        fidelity_against="m",
        environment={},
        findings=findings,
        controls=(),
        similarity=(),
        limits=(),
    )


def test_the_queries_are_read_off_between_two_budgets_and_halved() -> None:
    found = derive(report(fidelity(1000, 0.8), fidelity(4000, 1.0)), MODEL, ANSWERS)
    assert found.queries == pytest.approx(2000, abs=0.1)  # half way over the logarithm
    assert (found.rows, found.reached, found.as_served, found.arm) == (1000, True, True, "defended")
    assert found.metrics == {"budget_queries_to_fidelity_0.90": found.queries, "budget_margin": 0.5}
    assert len(found.notes) == 1
    assert "fidelity 0.9" in found.notes[0]


def test_the_thief_who_needs_the_fewest_counts_at_the_upper_end_of_its_interval() -> None:
    slow = (fidelity(1000, 0.5), fidelity(4000, 0.95))
    quick = (fidelity(500, 0.7, 0.7, attack="jbda"), fidelity(800, 0.85, 0.9, attack="jbda"))
    found = derive(report(*slow, *quick), MODEL, ANSWERS, margin=1.0)
    assert (found.rows, found.thief) == (800, "jbda, naive, soft")
    without = derive(report(*slow), MODEL, ANSWERS, margin=1.0)
    assert without.rows > 3000


def test_cover_traffic_is_counted_as_a_budget_counts_it() -> None:
    assert derive(report(fidelity(100, 0.95, cover=200)), MODEL, ANSWERS, margin=1.0).rows == 300


def test_where_nobody_reached_it_the_most_that_was_tried_is_a_lower_bound_and_said_to_be() -> None:
    found = derive(
        report(fidelity(1000, 0.6), fidelity(5000, 0.83), fidelity(2000, 0.7, attack="jbda")), MODEL, ANSWERS
    )
    assert (found.rows, found.queries, found.reached) == (2500, 5000, False)
    assert "is not known" in found.notes[0]
    assert list(found.metrics) == ["budget_most_queries_tried_below_fidelity_0.90", "budget_margin"]


def test_what_the_owner_should_know_is_said() -> None:
    at_once = derive(report(fidelity(500, 0.95), fidelity(300, 0.4, attack="jbda"), own=False), MODEL, ANSWERS)
    assert at_once.rows == 250
    told = " ".join(at_once.notes)
    for words in ("audit smaller budgets", "1 thieves were tried with fewer answers only", "model's own kind"):
        assert words in told


def test_the_arm_that_answers_as_the_service_will_counts_and_else_the_one_without_a_guard() -> None:
    arms = {"undefended": card(answers=OTHER, chain=("release",)), "defended": card(chain=("bounds", "release"))}
    both = report(fidelity(400, 0.95, target="undefended"), fidelity(4000, 0.95), targets=arms)
    assert derive(both, MODEL, ANSWERS, margin=1.0).rows == 4000
    other = derive(both, MODEL, OTHER[::-1] + "d", margin=1.0)
    assert (other.rows, other.as_served) == (400, False)
    assert "without a guard" in " ".join(other.notes)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (report(fidelity(100, 0.95), targets={"defended": card(model=OTHER)}), "another model"),
        (report(fidelity(100, 0.95), targets={"defended": card(model="")}), "digest not told"),
        (
            report(fidelity(100, 0.95), targets={"defended": card(answers=OTHER, chain=("bounds", "release"))}),
            "another guard",
        ),
        (report(fidelity(100, None)), "no clone"),
        (report(), "no clone"),
    ],
)
def test_a_report_that_says_nothing_of_this_model_is_refused(bad: Report, match: str) -> None:
    with pytest.raises(WrongReportError, match=match):
        derive(bad, MODEL, ANSWERS)


@pytest.mark.parametrize("wrong", [{"fidelity": 0.0}, {"fidelity": 1.1}, {"margin": 0.0}, {"margin": 2.0}])
def test_shares_are_shares(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie"):
        derive(report(fidelity(100, 0.95)), MODEL, ANSWERS, **wrong)


# --- the same model, wherever it is looked at ---------------------------------------------------------------------------


def test_a_seal_changes_no_digest_of_the_model(world: World, tmp_path: Path) -> None:
    owner = OwnerKey.generate()
    chain = (BOUNDS, DefenseSpec(name="budget", parameters={"rows": 9}), RELEASE)
    folder = verify(sealed(tmp_path / "again", owner, chain, name="else"), [owner.public])
    known = world.opened(world.bundle)
    assert folder.manifest.model_digest() == known.manifest.model_digest()
    assert folder.manifest.answers_digest() != known.manifest.answers_digest()
    plain = world.opened(world.plain)
    assert plain.manifest.answers_digest() == folder.manifest.answers_digest()  # a budget changes no answer
    other = sealed(tmp_path / "other", world.owner, GUARD, seed=9)
    assert verify(other, [world.owner.public]).manifest.model_digest() != known.manifest.model_digest()


def test_targets_tell_it_in_process_and_over_http(world: World, tmp_path: Path) -> None:
    manifest = world.opened(world.bundle).manifest
    expected = (manifest.model_digest(), manifest.answers_digest())
    inside: ServiceTarget = guarded(world.opened(world.bundle), world.key)
    assert (inside.identity.model_digest, inside.identity.answers_digest) == expected
    assert unguarded(world.opened(world.bundle)).identity.answers_digest != expected[1]
    with served(world, tmp_path) as url, Client(url) as client:
        outside = HttpTarget(client, url).identity
    assert (outside.model_digest, outside.answers_digest) == expected


@pytest.fixture
def draft() -> Draft:
    return Draft(
        name="small",
        version=1,
        model=mlp(0),
        task=Task.CLASSIFICATION,
        labels=LABELS,
        inputs=(InputSpec(name="image", datatype="FP32", shape=PIXELS, minimum=0.0, maximum=1.0),),
        guard=GUARD,
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"image": images(4)},
    )


def test_a_draft_gets_the_budget_and_the_manifest_says_where_from(draft: Draft, tmp_path: Path) -> None:
    model, answers = digests_of(draft)
    file = tmp_path / "report.json"
    file.write_bytes(
        render(report(fidelity(1000, 0.8), fidelity(4000, 1.0), targets={"defended": card(model, answers)}))
    )
    made = derived_draft(draft, file, 0.9, 0.5, 3.0)
    budget = next(spec for spec in made.guard if spec.name == "budget")
    assert budget.parameters == msgspec.to_builtins(Budget(rows=1000, price_per_1000_rows=3.0))
    assert made.provenance.metrics["budget_queries_to_fidelity_0.90"] == pytest.approx(2000, abs=0.1)
    assert len(made.provenance.data_sha256["budget report"]) == 64
    assert digests_of(made) == (model, answers)
    own = DefenseSpec(name="budget", parameters=msgspec.to_builtins(Budget(rows=700, period="day")))
    bounded = derived_draft(replace(draft, guard=(own, *draft.guard)), file, 0.9, 0.25)
    assert bounded.guard[0].parameters == own.parameters | {"distinct": 500}
    assert EVERY_DAY in bounded.notes
    assert EVERY_DAY not in made.notes  # control
    fewer = DefenseSpec(name="budget", parameters=msgspec.to_builtins(Budget(rows=700, distinct=40)))
    kept = derived_draft(replace(draft, guard=(fewer, *draft.guard)), file, 0.9, 0.25)
    assert kept.guard[0].parameters == fewer.parameters, "what the owner chose is never loosened"


def test_a_file_that_is_no_report_is_told(draft: Draft, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        derived_draft(draft, tmp_path / "none.json", 0.9, 0.5)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(WrongReportError, match="no report"):
        derived_draft(draft, tmp_path / "bad.json", 0.9, 0.5)


def test_the_price_is_the_plan_s_then_the_service_s_then_a_dollar() -> None:
    assert priced(PLAN, 0.0).usd_per_1000 == PLAN.usd_per_1000 == 1.0
    assert priced(PLAN, 2.5).usd_per_query == 0.0025
    named = msgspec.structs.replace(PLAN, usd_per_1000_queries=4.0)
    assert priced(named, 2.5).usd_per_1000 == 4.0
