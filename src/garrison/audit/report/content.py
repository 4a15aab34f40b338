"""What a report holds. The JSON form of it is the source of truth; every other format is made from it alone."""

from __future__ import annotations

import msgspec

from garrison.attacks.base import NAIVE, Finding
from garrison.audit.plan import Plan
from garrison.audit.similarity import SimilarityPoint

FORMAT = "garrison-report/1"


class TargetCard(msgspec.Struct, frozen=True, kw_only=True):
    """What was attacked; see `garrison.audit.targets.Identity`. `note` says in a sentence what it is."""

    note: str
    where: str
    model: str
    version: str
    manifest_digest: str
    guard_digest: str
    chain: tuple[str, ...] | None
    overridden: bool


class DataCard(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that were used: source, how many of them, shape of one, digest of the whole source."""

    source: str
    rows: int
    shape: tuple[int, ...]
    sha256: str


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan names and was not carried out against a target, and why."""

    target: str
    attack: str
    why: str


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What an attack says of itself; grades nothing. The mean over its seeds."""

    target: str
    attack: str
    tactic: str
    budget: int
    what: str
    value: float


class PictureCard(msgspec.Struct, frozen=True, kw_only=True):
    """Images that belong together: a PNG file in base64 for each name."""

    caption: str
    names: tuple[str, ...]
    images: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """An audit's result.

    Attributes:
        garrison: the version that made it.
        created: UTC, RFC 3339.
        headline: what a thief gets at what price, in a sentence or two.
        plan: the whole plan.
        data: by role.
        targets: by name; "undefended", "outlier-exposure", "defended".
        fidelity_against: which model fidelity and similarity are measured against; "" where none was at hand.
        environment: versions and machine.
        findings: what was measured on the targets.
        controls: clones trained on random classes, which ask nobody.
        similarity: the points of figure 5.
        left_out: what the plan names and was not carried out, and why.
        told: what attacks say of themselves; grades nothing.
        pictures: what attacks asked, to be looked at.
        limits: what does not hold or was not measured, in plain sentences.
    """

    format: str = FORMAT
    garrison: str
    created: str
    headline: str
    plan: Plan
    data: dict[str, DataCard]
    targets: dict[str, TargetCard]
    fidelity_against: str
    environment: dict[str, str]
    findings: tuple[Finding, ...]
    controls: tuple[Finding, ...]
    similarity: tuple[SimilarityPoint, ...]
    left_out: tuple[LeftOut, ...] = ()
    told: tuple[Told, ...] = ()
    pictures: tuple[PictureCard, ...] = ()
    limits: tuple[str, ...]

    def find(
        self, target: str, metric: str, *, answers: str = "none", budget: int | None = None, control: bool = False
    ) -> Finding | None:
        """The finding of that target and metric; of clones, the main attack's of that budget."""
        attacks = {"none", self.main_attack}
        for finding in self.controls if control else self.findings:
            same = (finding.target, finding.metric, finding.answers) == (target, metric, answers)
            whose = control or (finding.attack in attacks and finding.tactic == NAIVE)
            if same and whose and (budget is None or finding.budget == budget):
                return finding
        return None

    @property
    def main_attack(self) -> str:
        """The attack that was carried out with the most budgets, the first of them: what figures over queries show."""
        budgets: dict[str, set[tuple[str, int]]] = {}
        for f in self.findings:
            if f.attack != "none" and f.tactic == NAIVE:
                budgets.setdefault(f.attack, set()).add((f.answers, f.budget))
        return max(budgets, key=lambda attack: len(budgets[attack]), default="none")
