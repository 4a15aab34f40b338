"""What a report holds. The JSON form of it is the source of truth; every other format is made from it alone."""

from __future__ import annotations

import msgspec

from garrison.attacks.base import Finding
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
    limits: tuple[str, ...]

    def find(
        self, target: str, metric: str, *, answers: str = "none", budget: int | None = None, control: bool = False
    ) -> Finding | None:
        """The finding of that target and metric; of clones, the one of that budget."""
        for finding in self.controls if control else self.findings:
            same = (finding.target, finding.metric, finding.answers) == (target, metric, answers)
            if same and (budget is None or finding.budget == budget):
                return finding
        return None
