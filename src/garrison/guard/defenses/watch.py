"""Watch: detectors sum up what speaks for an attack, caller by caller; an alarm becomes an action (OWASP ML05).

What an alarm does about answers it does by the signal `confidence`: an alarmed caller's rows lose it, which fails closed, so that the next defense
(adaptive-misinformation, reject-option) treats them as it treats whatever looks out of distribution. With misinformation an input that was
misinformed before gets the very same answer after the alarm. Rows that the caller was answered before keep their answers.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import REPLACE, Defense, RowDefense, Verdict, View, kept, raise_not_tighter
from garrison.guard.defenses.projection import Projection
from garrison.guard.detectors import DETECTORS
from garrison.guard.detectors.base import MOST_BYTES, MOST_ROWS, Detector
from garrison.guard.state import MOST_CALLERS, State
from garrison.guard.watching.book import ACTIONS, Armed
from garrison.guard.watching.digests import DIGEST_BYTES
from garrison.guard.watching.remembered import Settings
from garrison.guard.watching.state import Rows, WatchState
from garrison.types import BoolArray, ModelFacts, Phase, Task

Action = Literal["log", "misinform", "throttle", "work", "refuse"]
MOST_REMEMBERED = 4096
_OWN = {"action", "shadow"}


class Watch(RowDefense, frozen=True):
    """Let detectors look at what each caller asks, and act when one rings.

    Does not check: whether two callers are one person, but for what detectors find alike in them; that the host's clock is right, by which
    evidence and alarms fade.

    Attributes:
        detectors: by name, the detector's own parameters (`threshold` among them), and beside them `action`, in place of this defense's, and `shadow`:
            its alarms are recorded and do nothing.
        action: what an alarm does, each including those before it: log < misinform < throttle < work < refuse. Misinformation is
            done here, the last three by `sanctions`.
        half_life: seconds in which evidence and alarms fade to half.
        callers: so many are remembered; who asked longest ago is forgotten first, but alarmed ones last.
        remembered: rows of each caller that keep their answers when an alarm rings: the latest; 0 for none.
    """

    name: ClassVar[str] = "watch"
    phase: ClassVar[Phase] = Phase.ANSWER
    needs: ClassVar[frozenset[str]] = frozenset({"projection", "confidence"})
    gives: ClassVar[frozenset[str]] = frozenset({"confidence"})
    in_graph: ClassVar[bool] = False
    only_signals: ClassVar[bool] = True

    detectors: dict[str, dict[str, Any]]
    action: Action = "misinform"
    half_life: float = 86_400.0
    callers: int = 4096
    remembered: int = 2048

    def __post_init__(self) -> None:
        if not 0 < self.half_life < math.inf:
            raise ValueError(f"watch.half_life must be above 0 seconds and finite, found {self.half_life}")
        if not 1 <= self.callers <= MOST_CALLERS:
            raise ValueError(f"watch.callers must lie in 1 to {MOST_CALLERS}, found {self.callers}")
        if self.remembered and not MOST_ROWS <= self.remembered <= MOST_REMEMBERED:
            raise ValueError(
                f"watch.remembered must be 0 or lie in {MOST_ROWS} to {MOST_REMEMBERED}, found {self.remembered}"
            )
        self.armed()

    def armed(self) -> tuple[Armed, ...]:
        """The detectors, loaded.

        Raises:
            ValueError: one that is not known, or parameters that it does not take.
        """
        return tuple(_armed(name, given, self.action) for name, given in self.detectors.items())

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not Task.CLASSIFICATION:
            raise GuardError(
                f"{self.name} needs a model that answers probabilities; this one answers {facts.task.value}"
            )

    def check_chain(self, chain: Sequence[Defense]) -> None:
        """The detectors fit the projection, and what is remembered of a caller stays below `MOST_BYTES`."""
        width = next((defense.width for defense in chain if isinstance(defense, Projection)), None)
        if width is None:
            raise GuardError(f"{self.name} needs the defense {Projection.name} before it")
        try:
            columns = [column for armed in self.armed() for column in armed.detector.columns(width).values()]
        except ValueError as error:
            raise GuardError(f"{self.name}: {error}") from error
        size = sum(column.size for column in columns) + DIGEST_BYTES * self.remembered
        if size > MOST_BYTES:
            raise GuardError(
                f"{self.name} would remember {size} bytes of each caller; at most {MOST_BYTES} are allowed"
            )

    def fresh_state(self, facts: ModelFacts) -> State:
        return WatchState(Settings(self.armed(), self.half_life, self.callers, self.remembered), facts)

    def __call__(self, view: View) -> Verdict:
        if not isinstance(view.state, WatchState) or view.raw is None:
            raise GuardError(f"{self.name} keeps state and runs after the model")
        view.state.book.in_shadow = view.shadow
        silent = _observe(view.state, view, view.raw.values)
        if silent is None:
            return Verdict(kept(view.batch.rows))
        codes = np.zeros(view.batch.rows, dtype=np.uint8)
        if view.shadow:
            codes[silent] = REPLACE  # to be counted
            return Verdict(codes)
        confidence = view.signals["confidence"]
        return Verdict(codes, signals={"confidence": np.where(silent, confidence.dtype.type(np.nan), confidence)})

    def check_tightened(self, signed: Self) -> None:
        if self.half_life < signed.half_life:
            raise_not_tighter(self.name, f"half_life must be at least {signed.half_life}, found {self.half_life}")
        if (self.callers, self.remembered) != (signed.callers, signed.remembered):
            raise_not_tighter(self.name, "callers and remembered can only be changed by its owner, with a new seal")
        if list(self.detectors) != list(signed.detectors):
            raise_not_tighter(self.name, f"its detectors are {', '.join(signed.detectors)}")
        for now, before in zip(self.armed(), signed.armed(), strict=True):
            _check_tightened(now, before)


def _observe(state: WatchState, view: View, values: Any) -> BoolArray | None:
    """Show the rows of all requests that are not refused."""
    batch, signals = view.batch, view.signals
    names = [caller.id for caller in batch.callers]
    rows = Rows(batch.inputs, signals["projection"], signals["confidence"], values)
    if not view.refused:
        return state.observe(names, batch.request_of_row, rows)
    there = ~np.array(view.refused)
    kept = np.flatnonzero(there[batch.request_of_row])
    if not len(kept):
        return None
    number = np.cumsum(there) - 1
    names = [name for name, refused in zip(names, view.refused, strict=True) if not refused]
    found = state.observe(names, number[batch.request_of_row[kept]], rows.some(kept))
    if found is None:
        return None
    silent = np.zeros(batch.rows, dtype=np.bool_)
    silent[kept] = found
    return silent


def detector_kind(name: str) -> type[Detector]:
    """The class of that name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; known are {', '.join(sorted(DETECTORS))}")
    module, _, attribute = DETECTORS[name].partition(":")
    kind: type[Detector] = getattr(importlib.import_module(module), attribute)
    return kind


def load_detector(name: str, parameters: dict[str, Any]) -> Detector:
    """The detector of that name.

    Raises:
        ValueError: an unknown name, or parameters that it does not take.
    """
    kind = detector_kind(name)
    try:
        found = msgspec.convert(parameters, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"detector {name!r}: {error}") from error
    if not 0 < found.threshold < math.inf:
        raise ValueError(f"detector {name!r}: threshold must be above 0 and finite, found {found.threshold}")
    return found


def _armed(name: str, given: dict[str, Any], action: Action) -> Armed:
    own = given.get("action") or action
    shadow = given.get("shadow", False)
    if own not in ACTIONS or not isinstance(shadow, bool):
        raise ValueError(f"detector {name!r}: action must be one of {', '.join(ACTIONS)}, and shadow true or false")
    detector = load_detector(name, {key: value for key, value in given.items() if key not in _OWN})
    return Armed(name, detector, ACTIONS.index(own), shadow)


def _check_tightened(now: Armed, signed: Armed) -> None:
    where = f"watch.detectors.{now.name}"
    if now.shadow and not signed.shadow:
        raise_not_tighter(where, "a host may arm a detector, not disarm it")
    if now.level < signed.level:
        raise_not_tighter(where, f"the action must be at least {ACTIONS[signed.level]!r}")
    if now.detector.threshold > signed.detector.threshold:
        raise_not_tighter(where, f"threshold must be at most {signed.detector.threshold}")
    if msgspec.structs.replace(now.detector, threshold=signed.detector.threshold) != signed.detector:
        raise_not_tighter(where, "only shadow, action and threshold can be changed")
