"""The guard of a bundle around answers that are computed elsewhere.

A question goes through ADMIT and INSPECT before anything is computed; its answer goes through ANSWER, RELEASE and RECORD, and is charged,
before anything leaves. Of the bundle's own graphs only f' is run, and only for rows that get misinformation.

Invariants: nothing leaves but what RELEASE made; an answer that is not what the manifest says (shape, finite, probabilities) is used for
nothing; rows are charged before an answer leaves, also where the guard refuses, and not where a request is at fault.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.bundle.key_files import read_public_key
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import check_secret, read_secret, secret_path
from garrison.config import CallerConfig
from garrison.errors import (
    BudgetExhaustedError,
    ConfigError,
    GarrisonError,
    RefusedError,
    ServiceError,
)
from garrison.guard.caller_release import CallerReleases
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.proof_of_work import ProofOfWork
from garrison.guard.distinct import DistinctRows
from garrison.guard.pipeline import Pipeline, Progress, tighten
from garrison.limits import Limits
from garrison.runtime.misinformation import Misinformation
from garrison.runtime.runner import VALUES_OUTPUT, example_inputs
from garrison.server.budgets import BudgetBook, default_folder
from garrison.server.http_errors import Headers
from garrison.server.model_budget import Left, ModelBudget
from garrison.server.rate_limits import RateLimits
from garrison.types import Array, Batch, Caller, FloatArray, ModelFacts, RawScores, Released, Task

logger = logging.getLogger(__name__)

SUM_TOLERANCE = 1e-3
"""How far the probabilities of one row may be from a sum of 1."""
_FEW = 64
INLINE_SECONDS = 0.01
"""What is expected to take longer is not computed on the event loop's thread."""

Result = TypeVar("Result")


class TurnedDownError(GarrisonError):
    """The guard turned a request down; `told` is the code for the client, `detail` why, where it is its own fault, and `headers` go with it."""

    def __init__(self, code: str, detail: str, headers: Headers) -> None:
        super().__init__(detail)
        self.told = code
        self.headers = headers


class Asking(msgspec.Struct, eq=False):
    """One request on its way: what became of it so far, and what its caller has left. A struct, as one is made for every request."""

    progress: Progress
    left: Left


class AppGuard:
    """The chain of a bundle, for one model that is computed elsewhere. To be used on one event loop.

    Args:
        bundle: folder of the sealed model; verified here.
        trust: files of public keys that may have signed it.
        secret: file of its misinformation key; None for the one beside the bundle.
        state: folder where budgets are kept; None for the user's own.
        changes: by defense name, what is tightened of the signed guard.
        callers: by caller, or "*" for all others, a stricter release policy, written as `[callers.NAME]` of the settings.
        limits: sizes and counts.

    Raises:
        BundleError: the bundle must not be used.
        ConfigError: the owner demands sealed requests, which end in an enclave.
        GuardError: the chain cannot be built without the model itself, or would be loosened.
        KeyFileError: a key cannot be read, or belongs to another model.
    """

    def __init__(
        self,
        bundle: Path,
        trust: Sequence[Path],
        *,
        secret: Path | None,
        state: Path | None,
        changes: Mapping[str, Mapping[str, Any]],
        limits: Limits,
        callers: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        verified = verify(bundle, [read_public_key(file) for file in trust])
        manifest = verified.manifest
        if manifest.require_sealed:
            raise ConfigError(f"{bundle}: its owner demands sealed requests; serve it with `garrison serve`")
        if any(spec.name == ProofOfWork.name and not spec.shadow for spec in manifest.guard):
            raise ConfigError(
                f"{bundle}: it asks for proofs of work, which belong to a server's key; serve it with `garrison serve`"
            )
        self.name, self.version = manifest.name, str(manifest.version)
        self.facts: ModelFacts = replace(manifest.facts(), has_logits=False, feature_score="")  # an app answers neither
        self.answer_name = VALUES_OUTPUT[manifest.task]
        key = _secret(bundle, secret, verified) if manifest.key_commitment else None
        self._pipeline = Pipeline(tighten(manifest.guard, changes), self.facts, key)
        self._releases = CallerReleases(self._pipeline.release_defense, _policies(callers or {}), self.facts)
        self._limits = limits
        self._lock = asyncio.Lock()
        self._wrong: Misinformation | None = None
        self._quick_rows = limits.inline_rows
        if any(defense.needs_key for defense in self._pipeline.defenses):
            graph = manifest.misinformation or manifest.graph  # a network of its own, or a head on the model's graph
            self._wrong = Misinformation(verified, graph, limits.compute_rows)
            self._quick_rows = min(limits.inline_rows, int(INLINE_SECONDS / _seconds(self._wrong, verified)))
        budget = self._pipeline.find(Budget.name)
        rows, period, distinct = (
            (budget.rows, budget.period, budget.distinct) if isinstance(budget, Budget) else (0, "", 0)
        )
        self._book = BudgetBook(state or default_folder()) if rows else None
        if self._book is not None:
            self._book.keep_ahead()
        self._budget = ModelBudget(self.name, rows, period, self._book, distinct)
        self._limits_told = RateLimits(self._budget)
        self._distinct = next((x.state for x in self._pipeline.links if isinstance(x.state, DistinctRows)), None)

    def released(self, caller: str) -> tuple[str, ...]:
        """The names of the tensors that a caller gets."""
        return tuple(name for name, _, _ in self._releases.outputs(caller))

    def rate_limits(self, asking: Asking) -> Headers:
        """The headers that say what the caller has left; none where there is no budget."""
        return self._limits_told.headers(asking.left)

    async def ask(self, inputs: dict[str, Array], caller: str) -> Asking:
        """ADMIT and INSPECT.

        Raises:
            TurnedDownError: the request must not be computed.
        """
        left = self._budget.left_one_at_once(caller)
        if left is None:
            left = await asyncio.to_thread(self._budget.left, caller)
        rows = len(next(iter(inputs.values())))
        batch = Batch(inputs, np.zeros(rows, dtype=np.intp), (Caller(caller),), (left.rows,), (left.fresh,))
        asking = Asking(Progress.begin(batch), left)
        if self._is_quick(rows):
            self._look(asking.progress)
        else:
            await self._aside(self._look, asking.progress)
        if asking.progress.refused[0] is not None:
            await self._turn_down(asking.progress.refused[0], asking)
        return asking

    async def answer(self, asking: Asking, values: Array) -> Released:
        """ANSWER, RELEASE and RECORD, and the charge.

        Args:
            asking: from `ask`.
            values: what the app's model answers, shape (rows, outputs), in any real type.

        Raises:
            ServiceError: this is no answer of such a model.
            TurnedDownError: the answer must not leave.
        """
        progress = asking.progress
        rows = progress.batch.rows
        answer = self._checked(values, rows)
        if self._is_quick(rows):
            released = self._release(progress, answer)
        else:
            released = await self._aside(self._release, progress, answer)
        if progress.refused[0] is not None:
            await self._turn_down(progress.refused[0], asking)
        caller = progress.batch.callers[0].id
        if self._budget.charge_one_at_once(caller, rows):  # nearly always
            asking.left = asking.left.after(rows, 0)
        else:
            await self._charge(asking)
        policy = self._releases.of(caller)
        return released if policy is None else self._releases.tightened(policy, released)

    def close(self) -> None:
        if self._book is not None:
            self._book.close()

    def _is_quick(self, rows: int) -> bool:
        """Whether so many rows are done on this thread: one call at a time, as a chain expects it."""
        return rows <= self._quick_rows and not self._lock.locked()

    async def _aside(self, call: Callable[..., Result], *more: Any) -> Result:
        """On another thread, when no other call is under way."""
        await self._lock.acquire()
        try:
            running = asyncio.get_running_loop().run_in_executor(None, call, *more)
        except BaseException:
            self._lock.release()
            raise
        running.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(running)  # the thread cannot be stopped, so the lock is held until it ends

    def _look(self, progress: Progress) -> None:
        self._pipeline.admit(progress)
        if progress.refused[0] is None:
            self._pipeline.inspect(progress)

    def _release(self, progress: Progress, answer: FloatArray) -> Released:
        self._pipeline.answer(progress, RawScores(answer, None, self._misinformation(progress.batch.inputs)))
        released = self._pipeline.release(progress)
        self._pipeline.record(progress, released)
        return released

    def _misinformation(self, inputs: dict[str, Array]) -> Callable[[npt.NDArray[np.intp]], FloatArray] | None:
        wrong = self._wrong
        return None if wrong is None else lambda rows: wrong.run({name: x[rows] for name, x in inputs.items()})

    def _checked(self, values: Array, rows: int) -> FloatArray:
        facts = self.facts
        if values.shape != (rows, facts.outputs):
            raise ServiceError(f"expected an answer of shape ({rows}, {facts.outputs}), found {values.shape}")
        answer: FloatArray = np.ascontiguousarray(values, dtype=facts.value_dtype)
        if facts.task is Task.CLASSIFICATION:  # each comparison is false for NaN
            if not _are_probabilities(answer):
                raise ServiceError("the answer's rows are no probabilities: finite, non-negative, with sum 1")
        elif not np.isfinite(answer).all():
            raise ServiceError("the answer holds NaN or an infinite value")
        return answer

    async def _turn_down(self, code: str, asking: Asking) -> NoReturn:
        """A defense refused the request; what is not the client's fault is charged."""
        if code.startswith("request."):
            told = self._limits_told.headers(asking.left, refused=code == BudgetExhaustedError.code)
            raise TurnedDownError(code, asking.progress.detail[0], told)
        await self._charge(asking)
        raise TurnedDownError(RefusedError.code, "the service refuses this request", self.rate_limits(asking))

    async def _charge(self, asking: Asking) -> None:
        progress = asking.progress
        caller, budget, rows = progress.batch.callers[0].id, self._budget, progress.batch.rows
        if not budget.rows:
            return
        wants = [(caller, rows)]
        news: list[tuple[str, int]] = []
        fresh: list[bool] = []
        if self._distinct is not None:
            news = [(caller, self._distinct.count(progress.batch, progress.refused)[0])]
            at_once = budget.charge_fresh_at_once(news)
            fresh = await asyncio.to_thread(budget.charge_fresh, news) if at_once is None else at_once
        granted = budget.charge_at_once(wants)
        if granted is None:
            granted = await asyncio.to_thread(budget.charge, wants)
        if not (all(fresh) and granted[0]):  # used up meanwhile, by another request
            told = self._limits_told.headers(Left(0, 0), refused=True)
            raise TurnedDownError(BudgetExhaustedError.code, budget.refusal, told)
        asking.left = asking.left.after(rows, news[0][1] if news else 0)
        if self._distinct is not None:
            self._distinct.learn(progress.batch, progress.refused)


def _policies(callers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the settings of callers mean as parameters of the defense `release`."""
    found = {}
    for name, given in callers.items():
        try:
            asked = msgspec.convert(given, CallerConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"Guarded: callers.{name}: {error}") from error
        if asked.policy is None or asked.rows_per_day or asked.requests_per_second:
            raise ConfigError(
                f"Guarded: callers.{name}: expected a release policy alone; `garrison serve` keeps quotas"
            )
        found[name] = asked.policy
    return found


def _are_probabilities(answer: FloatArray) -> bool:
    if len(answer) == 1 and answer.size <= _FEW:  # the usual case, in a third of the time
        (row,) = answer.tolist()
        return bool(min(row) >= 0 and abs(sum(row) - 1.0) <= SUM_TOLERANCE)  # a NaN goes into the sum
    return bool(answer.min() >= 0 and (np.abs(answer.sum(axis=1) - 1.0) <= SUM_TOLERANCE).all())


def _secret(bundle: Path, given: Path | None, verified: VerifiedBundle) -> bytes:
    file = given or secret_path(bundle)
    return check_secret(verified.manifest, read_secret(file), str(file))


def _seconds(wrong: Misinformation, bundle: VerifiedBundle) -> float:
    """What f' takes for one row; the first run allocates, and does not count."""
    rows = example_inputs(bundle.manifest.inputs, 1)
    wrong.run(rows)
    start = time.perf_counter()
    wrong.run(rows)
    return time.perf_counter() - start
