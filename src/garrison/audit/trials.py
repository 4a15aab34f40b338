"""The thief's part of an audit: every attack, budget and seed against every arm, and the control arm that asks nobody.

Invariants: the arms meet the same attacks with the same seeds through the same meter; a finished trial is kept and not done
again; budgets run from the smallest, so that larger ones share the questions of smaller ones. Arms are attacked side by side, each
on one thread, so that the figures do not depend on how many processors there are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from garrison.attacks.base import Attack, Finding, Trial, View, findings_of
from garrison.attacks.exam import Exam, chance_levels
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import LabelsOnly, MeteredOracle, Oracle
from garrison.audit import metrics
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData
from garrison.audit.environment import versions
from garrison.audit.plan import CONTROL, Plan, load_attack
from garrison.audit.stream import SharedStream
from garrison.audit.targets import Target, TargetName
from garrison.errors import MissingExtraError

PROBES = 64
FIDELITIES = (0.90, 0.95, 0.99)
NOBODY = "none"


@dataclass(slots=True)
class Thief:
    """Carries out a plan's attacks.

    Attributes:
        exam: what clones are measured on; the digests of its rows are in `data`, of its reference in `reference_digest`.
        tell: told what is being done, and the share of all training rows that is done; from several threads.
        asked: rows that each target itself was asked.
    """

    plan: Plan
    data: AuditData
    exam: Exam
    reference_digest: str
    cache: TrialCache
    tell: Callable[[str, float], None]
    targets: int
    asked: dict[TargetName, int] = field(default_factory=dict)
    _trained: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def attack_all(
        self, targets: Mapping[TargetName, Target], control: Target, threads: int
    ) -> tuple[list[Finding], list[Finding]]:
        """The findings on all targets, in their order, and those of the control arm.

        Args:
            targets: each is asked from one thread at a time.
            control: tells shape and classes to the control arm.
            threads: how many arms are attacked side by side.
        """
        with torch_threads(1), ThreadPoolExecutor(threads) as pool:
            arms = [pool.submit(self.attack, name, target) for name, target in targets.items()]
            last = pool.submit(self.control, control)
            try:
                return [finding for arm in arms for finding in arm.result()], last.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def attack(self, name: TargetName, target: Target) -> list[Finding]:
        """All attacks of the plan against one target. What cannot be carried out here is left out."""
        streams = {seed: SharedStream(target) for seed in self.plan.seeds}
        print_of = _fingerprint(target, self.data)
        found: list[Finding] = []
        for attack, view, budget in attacks_of(self.plan):
            facts = dataclasses.replace(target.facts, soft=target.facts.soft and view is View.SOFT)
            if (view is View.SOFT and not facts.soft) or attack.obstacle(facts):
                self._done(budget * len(self.plan.seeds))
                continue
            trials = []
            for seed in self.plan.seeds:
                stream: Oracle = streams[seed].rewind()
                oracle = LabelsOnly(stream) if view is View.LABELS else stream
                trials.append(self._trial(attack, view, budget, seed, oracle, (name.value, print_of)))
            found += self._findings(attack, trials, target, name.value, view)
        self.asked[name] = sum(stream.asked for stream in streams.values())
        return found + queries_to_fidelity(found, self.plan.usd_per_query)

    def control(self, target: Target) -> list[Finding]:
        """The control arm; the target only tells shape and classes, and is asked nothing."""
        found: list[Finding] = []
        if not self.plan.control.budgets:
            return found
        attack = load_attack(CONTROL, self.plan.control.parameters)
        for budget in sorted(self.plan.control.budgets):
            seeds = self.plan.seeds
            trials = [self._trial(attack, View.LABELS, budget, seed, target, (NOBODY, "")) for seed in seeds]
            found += self._findings(attack, trials, target, NOBODY, View.LABELS)
        return found

    def _findings(
        self, attack: Attack, trials: list[Trial], asked: Target, target: str, view: View
    ) -> tuple[Finding, ...]:
        price, chance = self.plan.usd_per_query, chance_levels(self.exam, asked.facts)
        return findings_of(attack.name, trials, chance, target=target, answers=view, usd_per_query=price)

    def _trial(
        self, attack: Attack, view: View, budget: int, seed: int, oracle: Oracle, target: tuple[str, str]
    ) -> Trial:
        name, fingerprint = target
        whole = self.plan.training_rows(self.targets)
        self.tell(f"{attack.name} on {name}, {budget:,} {view.value}, seed {seed}", self._trained / whole)
        rows = [self.data.surrogate.sha256, self.data.test.sha256, len(self.exam.x), self.reference_digest]
        parts = [repr(attack), view.value, budget, seed, fingerprint, *rows, *versions().values()]
        key = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
        trial = self.cache.get(key)
        if trial is None:
            knowledge = Knowledge(self.data.surrogate.x)
            trial = attack.carry_out(oracle, knowledge, self.exam, budget=budget, seed=seed)
            self.cache.put(key, trial)
        self._done(budget)
        return trial

    def _done(self, rows: int) -> None:
        with self._lock:
            self._trained += rows


def attacks_of(plan: Plan) -> Iterator[tuple[Attack, View, int]]:
    """Every attack with its budget, of each attack the smallest first."""
    for item in plan.attacks:
        attack = load_attack(item.name, item.parameters)
        for budget in sorted(item.budgets):
            yield attack, item.answers, budget


def queries_to_fidelity(found: list[Finding], usd_per_query: float) -> list[Finding]:
    """Q@f: for each attack and kind of answers, the fewest of the tried budgets that reach a fidelity."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in found:
        if f.metric == "fidelity" and f.value is not None:
            groups.setdefault((f.attack, f.answers), []).append(f)
    return [_reaching(group, level, usd_per_query) for group in groups.values() for level in FIDELITIES]


def _reaching(group: list[Finding], level: float, usd_per_query: float) -> Finding:
    most = max(group, key=lambda f: f.queries)
    queries = metrics.queries_to(level, {f.queries: f.value or 0.0 for f in group})
    return msgspec.structs.replace(
        most,
        metric=f"queries_to_fidelity_{level:.2f}",
        value=None if queries is None else float(queries),
        low=None,
        high=None,
        interval=f"none: not reached with {most.queries:,} queries"
        if queries is None
        else "none: of the tried budgets",
        chance=None,
        unit="queries",
        cost_usd=round((queries or most.queries) * usd_per_query, 6),
        complete=all(f.complete for f in group),
    )


def _fingerprint(target: Target, data: AuditData) -> str:
    """What tells one target from another: its digests, and the classes that it names for probes of all three kinds.

    Where it answers is left out: the same service at another port is the same target.
    """
    rows = (data.test, data.surrogate, data.outside)
    named = [MeteredOracle(target, 4 * PROBES).query(r.x[:PROBES]).labels.tolist() for r in rows]
    identity = target.identity
    parts = [identity.manifest_digest, identity.guard_digest, target.facts.soft, named]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on so many threads; as before afterwards.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "audit") from error
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
