"""Release policy: say as little as the owner allows (OWASP ML03, ML04, ML05)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import ReleaseDefense, View, raise_not_tighter
from garrison.types import FloatArray, ModelFacts, Released, Task

Mode = Literal["full", "rounded", "top-k", "labels"]
STRICTNESS: dict[Mode, int] = {"full": 0, "rounded": 1, "top-k": 2, "labels": 3}
OUTPUT_NAME = {Task.CLASSIFICATION: "probabilities", Task.SCORES: "scores", Task.REGRESSION: "values"}


def rounded(xp: Any, values: Any, decimals: int) -> Any:
    """Half to even at so many decimals. Rounded probabilities need not sum to 1."""
    scale = 10.0**decimals
    return xp.round(values * scale) / scale


def top_classes(values: FloatArray, k: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers of the k largest entries of each row, largest first; of equal ones the lower number first."""
    return np.argsort(-values, axis=1, kind="stable")[:, :k].astype(np.int64)


class Release(ReleaseDefense, frozen=True):
    """Choose what of the answer leaves.

    Attributes:
        mode: "full" vector; "rounded" to `decimals`; "top-k" classes with their (rounded, if `decimals` is given) values;
            "labels": the first class alone.
        k: number of classes in "top-k".
        decimals: digits after the point in "rounded" and "top-k"; 0 to 12.

    Does not stop by itself: label-only attacks, which need more queries and no more than labels.
    """

    name: ClassVar[str] = "release"

    mode: Mode = "full"
    k: int = 3
    decimals: int | None = None

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

    def __call__(self, view: View) -> Released:
        if view.answer is None or view.uncertain is None:
            raise GuardError("release runs after the model")
        return Released(self._outputs(view.answer, view.facts), view.uncertain)

    def _outputs(self, answer: FloatArray, facts: ModelFacts) -> dict[str, Any]:
        name = OUTPUT_NAME[facts.task]
        match self.mode:
            case "full":
                return {name: answer}
            case "rounded":
                return {name: self._round(answer)}
            case "top-k":
                classes = top_classes(answer, self.k)
                return {"classes": classes, name: self._round(np.take_along_axis(answer, classes, axis=1))}
            case "labels":
                return {"classes": top_classes(answer, 1)}

    def _round(self, values: FloatArray) -> FloatArray:
        return values if self.decimals is None else rounded(np, values, self.decimals).astype(values.dtype)

    def describe_outputs(self, facts: ModelFacts) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
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
            or (
                self.mode != "labels"
                and signed.decimals is not None
                and (self.decimals is None or self.decimals > signed.decimals)
            )
        )
        if looser:
            raise_not_tighter(self.name, f"signed is {signed.mode!r} (k {signed.k}, decimals {signed.decimals})")
