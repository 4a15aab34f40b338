"""The evasion part of an audit: every evasion attack of the plan against every target, on the same pictures.

Pictures are test rows that the undefended model names rightly; a seed has pictures of its own, so that shares over several seeds are shares of as many
different pictures. What a target does not answer rightly to begin with is left out for that target, and counted.

Invariants: an attack does not grade itself: a picture found counts where it lies within epsilon and the target's own model without its guard, or the service
as another user asks it, names another class. Alarms are those that do something; a detector in shadow rings for nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.attacks.base import View
from garrison.attacks.evasion.base import Evasion, EvasionTrial, Judge, Pictures
from garrison.attacks.measures import wilson
from garrison.attacks.oracle import AccountOracle, Answers, Labels, LabelsOnly, MeteredOracle, Oracle
from garrison.audit.alarms import forget, remembers, watches
from garrison.audit.arms import Arms
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData
from garrison.audit.environment import versions
from garrison.audit.plan import EvasionPlan, Plan, load_evasion
from garrison.audit.report.content import EvasionCard, LeftOut, Share
from garrison.audit.spending import Spending
from garrison.audit.targets import ServiceTarget, Target, TargetName, caller_name
from garrison.audit.trials import fingerprint
from garrison.errors import AuditSpentError
from garrison.types import Array, BoolArray

_AXES_OF_A_PICTURE = 3
_FIRST_ACCOUNT = 1
OTHERS = 200
"""Pictures of the model's own kind that the attacker has."""
Tell = Callable[[str, float], None]


@dataclass(slots=True)
class Evaded:
    """What the attacks gave."""

    cards: list[EvasionCard] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    asked: int = 0
    """Rows that the service itself was asked."""


@dataclass(frozen=True, slots=True)
class Rang:
    """The first alarms of one trial.

    Attributes:
        apart: whether every picture was attacked from an account of its own.
        rows: one entry a picture, the account's row; 0 for none. Of one account for all, the first entry is its.
        detectors: likewise, which one; "" for none.
        summed: rows of all accounts together at the very first alarm.
    """

    apart: bool
    rows: npt.NDArray[np.int64]
    detectors: tuple[str, ...]
    summed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evader:
    """Carries out a plan's evasion attacks.

    Attributes:
        spending: what may still be asked of the service.
        tell: told what is being done, and the share that is done.
        cache: where what is done is kept.
    """

    plan: Plan
    arms: Arms
    data: AuditData
    spending: Spending
    tell: Tell
    cache: TrialCache = field(default_factory=lambda: TrialCache(None))

    def evade_all(self) -> Evaded:
        """Every attack against every target; what cannot be carried out is left out, and named."""
        found, targets = Evaded(), self.arms.targets()
        work = [(name, target, item) for name, target in targets.items() for item in self.plan.evasions]
        for number, (name, target, item) in enumerate(work):
            self.tell(f"{item.label or item.name} on {name}", number / len(work))
            key = self._key(name, target, item)
            kept = self.cache.evasion(key)
            if kept is not None:
                found.cards.append(kept)
                continue
            done = len(found.cards)
            self._add(found, name, target, item)
            if len(found.cards) > done and found.cards[-1].seeds == len(self.plan.seeds):
                self.cache.put_evasion(key, found.cards[-1])
        return found

    def _key(self, name: str, target: Target, item: EvasionPlan) -> str:
        """The digest of all that a card depends on."""
        f, own = self.arms.f, self.data.own
        reference = "" if f is None else f.identity.manifest_digest
        rows = [f"{r.sha256} {len(r.x)}" for r in (self.data.test, own) if r is not None]
        parts = [
            _JUDGES,
            name,
            fingerprint(target, self.data),
            msgspec.to_builtins(item),
            self.plan.pictures,
            self.plan.seeds,
        ]
        return hashlib.sha256(msgspec.json.encode([*parts, reference, rows, *versions().values()])).hexdigest()

    def _add(self, found: Evaded, name: str, target: Target, item: EvasionPlan) -> None:
        attack, label = load_evasion(item.name, item.parameters), item.label or item.name
        seen: Oracle = LabelsOnly(target) if item.answers is View.LABELS else target
        why, code, trials, rang, left = self._obstacle(item, attack, seen), "", [], [], 0
        for seed in () if why else self.plan.seeds:
            x, y, lost = self._pictures(target, seed)
            left += lost
            if not len(x):
                continue
            paid = name == TargetName.DEFENDED
            try:
                self.spending.reserve(item.budget * len(x), paid=paid)
            except AuditSpentError as over:
                why, code = str(over), over.code
                break
            trial, alarms = self._carried_out(target, seen, attack, item, (x, y), seed)
            if paid:
                self.spending.give_back(item.budget * len(x) - int(trial.queries.sum()))
                found.asked += int(trial.queries.sum())
            trials.append(trial)
            rang.append(alarms)
        if trials:
            found.cards.append(card_of(trials, rang, item, (name, label), left, watched=watches(target)))
        elif not why:
            why = "the target names none of the pictures rightly to begin with"
        if why:
            tried = f"{label}, {item.answers.value}"
            found.left_out.append(LeftOut(target=name, attack=tried, why=why, thief=label, code=code))

    def _obstacle(self, item: EvasionPlan, attack: Evasion, oracle: Oracle) -> str:
        facts = oracle.facts
        if item.only and item.only != ("images" if len(facts.shape) == _AXES_OF_A_PICTURE else "tables"):
            return f"the plan tries it on {item.only} alone"
        if item.answers is View.SOFT and not facts.soft:
            return "the service releases no probabilities"
        if self.data.test.y is None:
            return "the test rows carry no classes"
        return attack.obstacle(facts)

    def _pictures(self, target: Target, seed: int) -> tuple[Array, Labels, int]:
        """The seed's pictures as far as the target names them rightly, and how many it does not."""
        x, y, place = self.data.test.x, self.data.test.y, self.plan.seeds.index(seed)
        if y is None:
            return x[:0], np.zeros(0, dtype=np.int64), 0
        order = np.random.default_rng(min(self.plan.seeds)).permutation(len(x))
        if self.arms.f is not None:
            order = order[self.arms.f.raw(x[order]).argmax(axis=1) == y[order]]
        mine = order[place * self.plan.pictures : (place + 1) * self.plan.pictures]
        if not len(mine):
            return x[:0], y[:0], 0
        rightly = _another_user(target)(x[mine]) == y[mine]
        return x[mine[rightly]], y[mine[rightly]].astype(np.int64), int((~rightly).sum())

    def _bare(self, target: Target) -> ServiceTarget | None:
        """The target's own model without its guard, as far as it is at hand."""
        arms = self.arms
        return arms.undefended if target is arms.undefended else arms.reference or arms.undefended

    def _carried_out(
        self,
        target: Target,
        seen: Oracle,
        attack: Evasion,
        item: EvasionPlan,
        pictures: tuple[Array, Labels],
        seed: int,
    ) -> tuple[EvasionTrial, Rang]:
        x, y = pictures
        forget(target)
        # The last account is an honest user's. What remembers nobody need not be told who asks.
        many = isinstance(seen, AccountOracle) and target.facts.accounts > len(x) + 1
        apart = item.accounts == "each" and many and (remembers(target) or not isinstance(target, ServiceTarget))
        accounts = np.arange(_FIRST_ACCOUNT, _FIRST_ACCOUNT + len(x)) if apart else None
        own = None if self.data.own is None else self.data.own.x[:OTHERS]
        trail = _Trail(seen) if watches(target) else None
        rang: list[Rang] = []

        def served(rows: Array) -> Labels:
            """Of a service that remembers its callers: to somebody who knows neither them nor each other."""
            rang.append(_rang(target, len(x), trail, apart=apart))
            forget(target)
            return _another_user(target)(rows)

        judges: dict[str, Judge] = {"served": served}
        bare = self._bare(target)
        if bare is not None:
            judges["undefended"] = lambda rows: bare.raw(rows).argmax(axis=1)
        trial = attack.carry_out(
            trail or seen, Pictures(x, y, own, accounts), judges, budget=item.budget, seed=seed, at_once=item.at_once
        )
        forget(target)
        return trial, rang[0]


_JUDGES = "own model"
"""What cards are kept under; another one where pictures are judged otherwise."""


class _Trail:
    """The service as the attack asks it, and who asked how many rows when."""

    def __init__(self, oracle: Oracle) -> None:
        self.facts = oracle.facts
        self.asked: list[tuple[int, int]] = []
        self._oracle = oracle

    def query(self, x: Array) -> Answers:
        self.asked.append((0, len(x)))
        return self._oracle.query(x)

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` from an account."""
        self.asked.append((account, len(x)))
        if not isinstance(self._oracle, AccountOracle):
            return self.query(x)
        return self._oracle.query_as(x, account)

    def summed(self, first: Mapping[int, int]) -> int | None:
        """Rows of all accounts together when the first of these alarms rang; by account, its row then."""
        rows, total = dict.fromkeys(first, 0), 0
        for account, count in self.asked:
            if account in rows:
                if rows[account] < first[account] <= rows[account] + count:
                    return total + first[account] - rows[account]
                rows[account] += count
            total += count
        return None


def _rang(target: Target, pictures: int, trail: _Trail | None, *, apart: bool) -> Rang:
    """The first alarm of each account that does something."""
    rows, detectors = np.zeros(pictures, dtype=np.int64), [""] * pictures
    if trail is None or not isinstance(target, ServiceTarget):
        return Rang(apart, rows, tuple(detectors))
    begun = _FIRST_ACCOUNT if apart else 0
    places = {caller_name(begun + i): i for i in range(pictures if apart else 1)}
    first: dict[int, int] = {}
    for alarm in sorted(target.service.alarms(), key=lambda alarm: -alarm.row):
        place = places.get(alarm.caller)
        if place is not None and alarm.action and alarm.row > 0:
            rows[place], detectors[place] = alarm.row, alarm.detector
            first[begun + place] = alarm.row
    return Rang(apart, rows, tuple(detectors), trail.summed(first))


def _another_user(target: Target) -> Judge:
    """The class that the service names to a user who asks nothing else; -1 where it names none."""

    def judge(x: Array) -> Labels:
        accounts = target.facts.accounts
        meter = MeteredOracle(target, 2 * len(x) + 1)
        if remembers(target):
            parts = [meter.query(x[i : i + 1], account=accounts - 1 - i) for i in range(len(x))]
            return np.concatenate([np.where(one.usable, one.labels, -1) for one in parts])
        answers = meter.query(x, account=accounts - 1 if accounts > 1 and isinstance(target, AccountOracle) else 0)
        return np.where(answers.usable, answers.labels, -1)

    return judge


def card_of(
    trials: Sequence[EvasionTrial],
    rang: Sequence[Rang],
    item: EvasionPlan,
    named: tuple[str, str],
    left_out: int,
    *,
    watched: bool,
) -> EvasionCard:
    """One card from trials that differ in their seed, and so in their pictures.

    Args:
        rang: by trial.
        item: of the plan.
        named: the target, and the attack as the report names it.
        left_out: pictures that this target does not name rightly.
        watched: whether alarms could be read off.
    """
    one, (target, label) = trials[0], named
    queries, at = (np.concatenate([getattr(t, what) for t in trials]) for what in ("queries", "succeeded_at"))
    served, distance = np.concatenate([t.fools["served"] for t in trials]), np.concatenate([t.distance for t in trials])
    alarm = np.concatenate([r.rows for r in rang])
    summed = [r.summed for r in rang if r.summed is not None]
    apart = all(r.apart for r in rang)
    before = (alarm > 0) & ((at == 0) | (alarm <= at)) & apart
    card = EvasionCard(
        target=target,
        attack=label,
        answers=item.answers.value,
        norm=one.norm,
        epsilon=one.epsilon,
        budget=one.budget,
        accounts="each" if apart else "one",
        seeds=len(trials),
        pictures=len(queries),
        left_out=left_out,
        success_undefended=_share([t.fools["undefended"] for t in trials]) if "undefended" in one.fools else None,
        success_served=_share([served]),
        success_seen=_share([at > 0]),
        queries=float(np.median(queries)),
        queries_to_success=_median(at[at > 0]),
        distortion=_median(distance[served]),
        unanswered=sum(t.unanswered for t in trials) / max(1, int(queries.sum())),
    )
    if not watched:
        return card
    return msgspec.structs.replace(
        card,
        watched=True,
        alarmed=int((alarm > 0).sum()),
        alarm_queries=_median(alarm[alarm > 0]),
        alarm_most=int(alarm.max()),
        alarm_summed=float(np.mean(summed)) if summed else None,
        alarmed_before_success=int(before.sum()),
        detectors=tuple(sorted({name for r in rang for name in r.detectors if name})),
    )


def _share(parts: Sequence[BoolArray]) -> Share:
    whole = np.concatenate(parts)
    e = wilson(int(whole.sum()), len(whole), "pictures")
    return Share(e.value, e.low, e.high)


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None
