"""Release policy: say as little as the owner allows (OWASP ML03, ML04, ML05)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Defense, ReleaseDefense, RowDefense, Settings, View, raise_not_tighter
from garrison.types import Array, ModelFacts, Released, Task

RADIUS = "certified_radius"
"""The signal, and the output."""
Mode = Literal["full", "rounded", "top-k", "labels"]
STRICTNESS: dict[Mode, int] = {"full": 0, "rounded": 1, "top-k": 2, "labels": 3}
OUTPUT_NAME = {Task.CLASSIFICATION: "probabilities", Task.SCORES: "scores", Task.REGRESSION: "values"}


def rounded(xp: Any, values: Any, scale: Any) -> Any:
    """Half to even at multiples of 1 / scale. Rounded probabilities need not sum to 1."""
    return xp.round(values * scale) / scale


def top_classes(xp: Any, values: Any, k: int) -> Any:
    """Numbers of the k largest entries of each row, largest first; of equal ones the lower number first. NaN comes last."""
    known = xp.where(values == values, values, -math.inf)  # NaN is not itself
    return xp.argsort(-known, axis=1, stable=True)[:, :k]


class Release(ReleaseDefense, frozen=True):
    """Choose what of the answer leaves.

    Attributes:
        mode: "full" vector; "rounded" to `decimals`; "top-k" classes with their (rounded, if `decimals` is given) values;
            "labels": the first class alone.
        k: number of classes in "top-k".
        decimals: digits after the point in "rounded" and "top-k"; 0 to 12.
        radius: beside it leaves the radius that `randomized-smoothing` certifies for each row, as `certified_radius`, shape (rows, 1); 0 where it abstains.

    Does not stop by itself: label-only attacks, which need more queries and no more than labels.
    """

    name: ClassVar[str] = "release"

    mode: Mode = "full"
    k: int = 3
    decimals: int | None = None
    radius: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"release.k must be at least 1, found {self.k}")
        if self.decimals is not None and not 0 <= self.decimals <= 12:
            raise ValueError(f"release.decimals must lie in 0 to 12, found {self.decimals}")
        if self.mode == "rounded" and self.decimals is None:
            raise ValueError("release.mode 'rounded' needs release.decimals")

    def check(self, facts: ModelFacts) -> None:
        if facts.task is Task.REGRESSION and self.mode in {"top-k", "labels"}:
            raise GuardError(
                f"release.mode {self.mode!r} needs classes; this model answers real values: use 'rounded' or 'full'"
            )
        if self.mode == "top-k" and self.k > facts.outputs:
            raise GuardError(f"release.k is {self.k}, but the model has {facts.outputs} classes")

    def check_chain(self, chain: Sequence[Defense]) -> None:
        if self.radius and not any(RADIUS in defense.gives for defense in chain):
            raise GuardError("release.radius: no defense of the chain certifies a radius; choose randomized-smoothing")
        drawing = next((d.name for d in chain if isinstance(d, RowDefense) and d.draws), "")
        if self.radius and drawing:
            raise GuardError(
                f"release.radius would tell which answers {drawing} makes up: leave one of them out (--on-ood uncertain)"
            )

    @property
    def all_of_it(self) -> bool:
        return self.mode == "full"

    def __call__(self, view: View) -> Released:
        found = super().__call__(view)
        if self.radius:
            found.outputs[RADIUS] = view.signals[RADIUS][:, np.newaxis].astype(view.facts.value_dtype)
        return found

    def settings(self, facts: ModelFacts) -> Settings:
        return {} if self.decimals is None else {"scale": np.asarray(10.0**self.decimals, facts.value_dtype)}

    def say(self, xp: Any, answer: Any, facts: ModelFacts, settings: Settings) -> dict[str, Any]:
        name, scale = OUTPUT_NAME[facts.task], settings.get("scale")
        match self.mode:
            case "full":
                return {name: answer}
            case "rounded":
                return {name: rounded(xp, answer, scale)}
            case "top-k":
                classes = top_classes(xp, answer, self.k)
                values = xp.take_along_axis(answer, classes, axis=1)
                return {"classes": classes, name: values if scale is None else rounded(xp, values, scale)}
            case "labels":
                return {"classes": top_classes(xp, answer, 1)}

    def said_of(self, outputs: Mapping[str, Array], looser: Release, facts: ModelFacts) -> dict[str, Array]:
        """What this policy lets out of what a looser one has let out, in numpy. Of classes that were rounded to a tie the first is named.

        Args:
            outputs: by name, as `looser` said them.
            looser: a policy that this one is a tightening of, see `check_tightened`.
        """
        name, settings = OUTPUT_NAME[facts.task], self.settings(facts)
        if looser.mode in {"full", "rounded"}:
            return self.say(np, outputs[name], facts, settings)
        first = {"classes": outputs["classes"][:, : 1 if self.mode == "labels" else self.k]}
        if self.mode == "labels":
            return first
        values, scale = outputs[name][:, : self.k], settings.get("scale")
        return first | {name: values if scale is None else rounded(np, values, scale)}

    def describe_outputs(self, facts: ModelFacts) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
        answer = self._describe_answer(facts)
        return (*answer, (RADIUS, facts.value_dtype, (1,))) if self.radius else answer

    def _describe_answer(self, facts: ModelFacts) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
        name, real, whole = OUTPUT_NAME[facts.task], facts.value_dtype, np.dtype(np.int64)
        match self.mode:
            case "full" | "rounded":
                return ((name, real, (facts.outputs,)),)
            case "top-k":
                return (("classes", whole, (self.k,)), (name, real, (self.k,)))
            case "labels":
                return (("classes", whole, (1,)),)

    def check_tightened(self, signed: Self) -> None:
        looser = (
            STRICTNESS[self.mode] < STRICTNESS[signed.mode]
            or (self.mode == signed.mode == "top-k" and self.k > signed.k)
            or (self.radius and not signed.radius)
            or (
                self.mode != "labels"
                and signed.decimals is not None
                and (self.decimals is None or self.decimals > signed.decimals)
            )
        )
        if looser:
            raise_not_tighter(self.name, f"signed is {signed.mode!r} (k {signed.k}, decimals {signed.decimals})")
