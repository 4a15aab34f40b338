"""Real scikit-learn models behind the real service, in double precision, and the tables that they are trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from garrison import datasets
from garrison.attacks.base import Attack, Trial
from garrison.attacks.draws import uniform_rows
from garrison.attacks.exam import Exam
from garrison.attacks.knowledge import Knowledge, Training
from garrison.attacks.oracle import Oracle
from garrison.audit.targets import HttpTarget, ServiceTarget, guarded, unguarded
from garrison.bundle.reader import verify
from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.guard.defenses.release import Release
from garrison.hardening.data import Rows
from garrison.sealing.formats.sklearn import convert
from garrison.sealing.formats.source import Source
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source
from garrison.server.root import assemble, background
from garrison.types import Array

RACES = 5


def fit(estimator: Any, x: Array, y: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is not what is tested
        return estimator.fit(x, y)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed model, its owner, and the target that an attack asks."""

    folder: Path
    owner: OwnerKey
    target: ServiceTarget

    def guarded(self) -> ServiceTarget:
        """Behind the chain that was sealed."""
        return guarded(verify(self.folder, [self.owner.public]), None)

    def with_release(self, mode: Any) -> ServiceTarget:
        return guarded(verify(self.folder, [self.owner.public]), None, mode)

    @contextmanager
    def over_http(self, state: Path) -> Iterator[HttpTarget]:
        config = Config(server=ServerConfig(port=0, state=str(state), isolation="none"))
        with (
            background(assemble(config, [self.folder], [self.owner.public])) as url,
            Client(url) as client,
        ):
            yield HttpTarget(client, url)


def sealed(
    estimator: Any, x: Array, y: Array, folder: Path, *, double: bool = True, release: Release | None = None
) -> Sealed:
    """An estimator, fitted, sealed with the ranges of its data, in this process."""
    return sealed_source(convert(estimator, double=double), x, y, folder, release=release)


def sealed_source(source: Source, x: Array, y: Array, folder: Path, *, release: Release | None = None) -> Sealed:
    """A converted model, sealed with the ranges of its data, in this process."""
    owner = OwnerKey.generate()
    rows: Rows = rows_from_arrays({"x": x}, y)
    options = SealOptions(name="model", release=release, range_margin=0.0)
    seal(draft_from_source(source, rows, options), owner, folder / "bundle")
    return Sealed(folder / "bundle", owner, unguarded(verify(folder / "bundle", [owner.public])))


def stolen(
    attack: Attack,
    oracle: Oracle,
    truth: ServiceTarget,
    x: Array,
    surrogate: Array,
    budget: int,
    *,
    seed: int = 0,
    uniform: int = 2000,
    training: Training | None = None,
    hyperparameters: dict[str, float] | None = None,
) -> Trial:
    """One attack on `oracle`, graded against the model itself on rows x and on uniform rows."""
    even = uniform_rows(np.random.default_rng(99), uniform, truth.facts)
    asked = x.astype(truth.facts.dtype)
    exam = Exam(asked, None, truth.raw(asked), even, truth.raw(even), hyperparameters or {})
    known = Knowledge(surrogate.astype(truth.facts.dtype), training=training)
    return attack.carry_out(oracle, known, exam, budget=budget, seed=seed)


def figures(trial: Trial) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in trial.scores.items()}


def race(split: str) -> tuple[Array, Array]:
    """Adult with the race as target, as Tramer et al. encode it: one-hot categories with one for "unknown", the income too; all
    else in [-1, 1]. 105 features, 5 classes."""
    base, data = datasets.load("adult", "train"), datasets.load("adult", split)
    if data.y is None:
        raise ValueError("adult has a target")
    columns = [data.y[:, np.newaxis] == np.arange(len(data.labels))]
    y = data.x[:, data.features.index("race")].astype(np.int64)
    for i, name in enumerate(data.features):
        values, known = data.x[:, i], base.x[:, i]
        if name in data.categories:
            kinds = len(data.categories[name])
            number = np.where(np.isnan(values), kinds, values)
            if name != "race":
                columns.append(number[:, np.newaxis] == np.arange(kinds + int(np.isnan(known).any())))
        else:
            columns.append((2 * (values - known.min()) / (known.max() - known.min()) - 1)[:, np.newaxis])
    return np.concatenate(columns, axis=1).astype(np.float64), y
