"""What a report holds. The JSON form of it is the source of truth; every other format is made from it alone."""

from __future__ import annotations

import msgspec

from garrison.attacks.base import NAIVE, Finding
from garrison.audit.plan import Plan
from garrison.audit.similarity import SimilarityPoint

FORMAT = "garrison-report/1"


class TargetCard(msgspec.Struct, frozen=True, kw_only=True):
    """What was attacked; see `garrison.audit.targets.Identity`. `note` says in a sentence what it is; digests are "" in older reports."""

    note: str
    where: str
    model: str
    version: str
    manifest_digest: str
    guard_digest: str
    chain: tuple[str, ...] | None
    overridden: bool
    model_digest: str = ""
    answers_digest: str = ""


class DataCard(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that were used: source, how many of them, shape of one, digest of the whole source."""

    source: str
    rows: int
    shape: tuple[int, ...]
    sha256: str


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan names and was not carried out against a target, and why.

    Attributes:
        why: in words.
        thief, column: where it stands in a table.
        code: of the error that ended it, such as "audit.spent" where a limit of the audit was used up; "" where it makes no sense here.
    """

    target: str
    attack: str
    why: str
    thief: str = ""
    column: str = ""
    code: str = ""


class AlarmCard(msgspec.Struct, frozen=True, kw_only=True):
    """When the detectors of a target saw a thief.

    Attributes:
        target, attack, tactic, answers, budget: of the trials.
        trials: trials that were watched, one a seed.
        alarmed: of those, in how many an alarm rang.
        queries: the attacker's rows of the account that rang first, up to then; the mean over trials in which it rang.
        summed: the attacker's rows of all accounts up to then, likewise. Cover traffic is left out of both.
        detectors: which ones rang first.
    """

    target: str
    attack: str
    tactic: str
    answers: str
    budget: int
    trials: int
    alarmed: int
    queries: float | None
    summed: float | None
    detectors: tuple[str, ...] = ()


class Share(msgspec.Struct, frozen=True):
    """A share with its interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class EvasionCard(msgspec.Struct, frozen=True, kw_only=True):
    """What an evasion attack did to pictures that were named rightly; over all seeds, each of which has pictures of its own.

    Attributes:
        target, attack, answers: of the trials; `attack` is its name in the plan.
        norm, epsilon: what counts as a success: a picture that lies within epsilon, in shares of the range, and is named another class.
        budget: rows that might be asked for a picture.
        accounts: "each" where every picture was attacked from an account of its own, else "one".
        pictures: how many were attacked.
        left_out: pictures that the undefended model names rightly and this target does not: refused, uncertain, or another class.
        success_undefended: share of the pictures found that fool the target's own model without its guard (else the plain model); None where neither is at hand.
        success_served: share that fool the service, as another user asks it.
        success_seen: share for which the attacker saw a success among the answers.
        queries: rows asked for a picture, the median.
        queries_to_success: rows to the first success that the attacker saw, the median over those that had one; None for none.
        distortion: of the pictures found, in `norm`, the median over those that fool the service; None for none.
        unanswered: share of the rows asked that were refused.
        watched: whether the target has detectors whose alarms could be read off.
        alarmed: pictures during whose attack the first alarm of their account rang.
        alarm_queries: rows of that account at its first alarm, the median over those; None for none.
        alarm_most: the largest of them; 0 for none.
        alarm_summed: rows of all accounts together at the very first alarm, the mean over seeds in which one rang; None for none.
        alarmed_before_success: pictures whose alarm rang before, or at, the attacker's first success, or that had no success and an alarm.
        detectors: which ones rang first.
    """

    target: str
    attack: str
    answers: str
    norm: str
    epsilon: float
    budget: int
    accounts: str
    seeds: int
    pictures: int
    left_out: int
    success_undefended: Share | None
    success_served: Share
    success_seen: Share
    queries: float
    queries_to_success: float | None
    distortion: float | None
    unanswered: float
    watched: bool = False
    alarmed: int = 0
    alarm_queries: float | None = None
    alarm_most: int = 0
    alarm_summed: float | None = None
    alarmed_before_success: int = 0
    detectors: tuple[str, ...] = ()


class TableCell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of a plan's table: a thief against an arm, by its dearest budget.

    Attributes:
        arm, thief, column: where it stands.
        why: why it is empty; "" where it is not.
        budget, queries, cover: rows of one seed; `cover` is beside the queries.
        seeds: how many clones the shares are the mean of.
        clone_accuracy, fidelity: None where there is none.
        queries_to_090: the fewest of the tried budgets whose clone has fidelity 0.9; None where none has.
        cost_usd: of one seed, the cover paid too.
        alarm: None where the arm has no detectors.
    """

    arm: str
    thief: str
    column: str
    why: str = ""
    budget: int = 0
    queries: int = 0
    cover: int = 0
    seeds: int = 0
    clone_accuracy: Share | None = None
    fidelity: Share | None = None
    queries_to_090: int | None = None
    cost_usd: float = 0.0
    alarm: AlarmCard | None = None


class ParetoPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What an arm costs honest users and gives a thief.

    Attributes:
        arm: its name.
        thief: the attack; "" for the best of all.
        served_accuracy, mean_l1: on the test rows; None where not measured.
        clone_accuracy: the best clone of that thief, over the columns that are filled for every arm.
        column: of that clone.
        by: the attack that made it.
        dominated: whether another arm gives away no more, costs no more in either measure, and is better in one of the three.
    """

    arm: str
    thief: str
    served_accuracy: float | None
    mean_l1: float | None
    clone_accuracy: float
    column: str
    by: str
    dominated: bool


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
        targets: by name; "undefended", "outlier-exposure", "defended", and the arms of the plan's table.
        fidelity_against: which model fidelity and similarity are measured against; "" where none was at hand.
        environment: versions and machine.
        findings: what was measured on the targets.
        controls: clones trained on random classes, which ask nobody.
        similarity: the points of figure 5.
        left_out: what the plan names and was not carried out, and why.
        told: what attacks say of themselves; grades nothing.
        pictures: what attacks asked, to be looked at.
        limits: what does not hold or was not measured, in plain sentences.
        alarms: when the detectors saw a thief.
        missing: arms of the plan's table that could not be had, and why.
        cells: the plan's table; none where it has no columns.
        pareto: what each arm of it costs honest users and gives a thief.
        evasions: what evasion attacks did to pictures.
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
    alarms: tuple[AlarmCard, ...] = ()
    missing: dict[str, str] = {}
    cells: tuple[TableCell, ...] = ()
    pareto: tuple[ParetoPoint, ...] = ()
    evasions: tuple[EvasionCard, ...] = ()

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
