"""What every registered detector keeps: an addition cannot skip these tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors import DETECTORS
from garrison.guard.detectors.base import MOST_BYTES, MOST_ROWS, Detector, Seen
from garrison.guard.watching.digests import DIGEST_BYTES
from garrison.guard.watching.places import Table
from garrison.types import Array, FloatArray

WIDTH, CLASSES, CALLERS = 32, 10, 7
_RNG = np.random.default_rng(3)
_PLANES = _RNG.normal(size=(8, WIDTH)).tolist()
_WHITEN = np.eye(WIDTH).tolist()
_STEPS = {"unit": 0.02, "weights": (0.5, -2.0, 1.0, 0.1, 0.1, 0.0, 0.0, 0.1, 0.0, 0.0)}
EXAMPLES: dict[str, dict[str, Any]] = {
    "ood-rate": {"edges": (0.5, 0.9), "nats": (1.0, 0.2, -0.3)},
    "ood-cover": {
        "edges": [[0.5, 0.9]] * CLASSES,
        "strange": (0.2, 0.4),
        "nats": (1.0, 0.5, 0.4, 0.3, 0.0, -0.1, -0.1, -0.2, -0.3),
    },
    "hardness": {
        "edges": [[0.5, 0.9]] * CLASSES,
        "mean": [0.0] * WIDTH,
        "whiten": _WHITEN,
        "far": [[20.0, 40.0]] * CLASSES,
        "nats": (1.0, 0.5, 0.4, 0.3, 0.0, -0.1, -0.1, -0.2, -0.3),
    },
    "coverage": {
        "planes": _PLANES,
        "offsets": [0.0] * 8,
        "window": 1000,
        "asked": (50.0, 200.0),
        "new": (0.0, 0.1, 0.5),
        "known": (0.0, -0.1, -0.2),
    },
    "bounded-prada": {"edges": (0.1, 0.5), "nats": (-0.1, 0.1, 0.5)},
    "near-duplicates": _STEPS,
    "small-steps": {"unit": 0.02, "edges": (0.5, 2.0), "nats": (1.0, 0.2, -0.3)},
    "accounts": _STEPS
    | {"mean": [0.0] * WIDTH, "whiten": _WHITEN, "out": 20.0, "edges": (0.5, 0.9), "nats": (1.0, 0.2, -0.3)},
}


def load(name: str) -> Detector:
    if name not in EXAMPLES:
        pytest.fail(f"put parameters of the detector {name!r} into EXAMPLES")
    return load_detector(name, {"threshold": 9.0, **EXAMPLES[name]})


def rows_of(rows: int, seed: int = 0, callers: int = CALLERS) -> Seen:
    """Rows of several callers, with steps from earlier rows, repeats, and strange ones among them."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, callers, rows)
    projection = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    for i in range(5, rows, 3):
        projection[i] = projection[rng.integers(0, i)] + rng.choice([0.0, 0.01, 0.1]) * rng.normal(size=WIDTH)
    probability = rng.uniform(1 / CLASSES, 1, rows).astype(np.float32)
    asked = np.array([np.count_nonzero(place[:i] == place[i]) for i in range(rows)])
    return Seen(place, asked, projection, probability, probability, rng.integers(0, CLASSES, rows))


def some(seen: Seen, rows: Array) -> Seen:
    return Seen(*(getattr(seen, field)[rows] for field in Seen.__struct_fields__))


class Held:
    """A detector and what it remembers."""

    def __init__(self, name: str, callers: int = CALLERS) -> None:
        self.detector = load(name)
        self.table = Table(self.detector.columns(WIDTH), callers)
        self.shared = {
            n: np.full(column.shape, column.fill, column.dtype) for n, column in self.detector.shares(WIDTH).items()
        }

    def weigh(self, seen: Seen) -> FloatArray:
        nats = self.detector.weigh(seen, self.table.arrays, self.shared)
        self.detector.links(seen, self.table.arrays, self.shared)
        return nats

    def in_parts(self, seen: Seen, size: int) -> FloatArray:
        starts = range(0, len(seen.place), size)
        return np.concatenate([self.weigh(some(seen, np.arange(i, min(i + size, len(seen.place))))) for i in starts])


@pytest.mark.parametrize("name", DETECTORS)
class TestEveryDetector:
    def test_is_what_the_registry_says(self, name: str) -> None:
        detector = load(name)
        assert detector.name == name
        assert load_detector(name, msgspec.to_builtins(detector)) == detector
        assert load_detector(name, msgspec.json.decode(msgspec.json.encode(detector))) == detector, "it can be signed"
        assert not {"action", "shadow"} & set(detector.__struct_fields__), "words of the host"
        with pytest.raises(ValueError, match="unknown field `thersold`"):
            load_detector(name, {"threshold": 9.0, **EXAMPLES[name], "thersold": 1.0})

    def test_says_something_finite_of_every_row(self, name: str) -> None:
        held, seen = Held(name), rows_of(400)
        nats = held.in_parts(seen, MOST_ROWS)
        assert nats.shape == (400,)
        assert np.isfinite(nats).all()
        assert len(np.unique(nats)) > 1, "control: it tells rows apart"
        odd = some(rows_of(12, seed=1), np.arange(12))
        for value in (0.0, 1e30, -1e30):
            assert np.isfinite(
                held.weigh(msgspec.structs.replace(odd, projection=np.full((12, WIDTH), value, "f4")))
            ).all()

    def test_no_row_says_more_than_the_most(self, name: str) -> None:
        """By which `watch` lets rows wait: an alarm would ring late."""
        held = Held(name)
        nats = held.in_parts(rows_of(2000), MOST_ROWS)
        assert 0 <= held.detector.most < np.inf
        assert nats.max() <= held.detector.most * (1 + 1e-12)
        assert nats.max() > 0.1 * held.detector.most, "control: of what is said it is a bound worth having"

    @pytest.mark.parametrize("size", [1, 3, 16])
    def test_what_it_says_does_not_depend_on_how_rows_are_cut(self, name: str, size: int) -> None:
        seen = rows_of(192)
        np.testing.assert_allclose(
            Held(name).in_parts(seen, size), Held(name).in_parts(seen, MOST_ROWS), rtol=1e-6, atol=1e-6
        )

    def test_a_caller_alone_is_weighed_as_among_others(self, name: str) -> None:
        """But for what the detector shares."""
        seen = rows_of(192)
        together = Held(name)
        nats = together.in_parts(seen, MOST_ROWS)
        if together.shared and not _only_salt(together.shared):
            pytest.skip("it looks at all callers together")
        for place in range(CALLERS):
            rows = np.flatnonzero(seen.place == place)
            alone = Held(name)
            alone.shared = {n: _fresh(x, together) for n, x in alone.shared.items()}
            np.testing.assert_allclose(alone.in_parts(some(seen, rows), 5), nats[rows], rtol=1e-6, atol=1e-6)

    def test_writes_at_its_own_places_alone(self, name: str) -> None:
        held, seen = Held(name, callers=2 * CALLERS), rows_of(96)
        fresh = Table(held.detector.columns(WIDTH), 2 * CALLERS)
        held.in_parts(seen, MOST_ROWS)
        for column in fresh.columns:
            np.testing.assert_array_equal(held.table[column][CALLERS:], fresh[column][CALLERS:])

    def test_leaves_what_it_is_shown_alone(self, name: str) -> None:
        seen = rows_of(32)
        before = [getattr(seen, field).copy() for field in Seen.__struct_fields__]
        Held(name).weigh(seen)
        for field, old in zip(Seen.__struct_fields__, before, strict=True):
            np.testing.assert_array_equal(getattr(seen, field), old)

    def test_memory_is_what_it_says(self, name: str) -> None:
        held, seen = Held(name), rows_of(96)
        shapes = {n: (x.shape, x.dtype) for n, x in {**held.table.arrays, **held.shared}.items()}
        held.in_parts(seen, MOST_ROWS)
        assert {n: (x.shape, x.dtype) for n, x in {**held.table.arrays, **held.shared}.items()} == shapes
        assert sum(x.nbytes for x in held.shared.values()) <= 4 * 1024 * 1024

    def test_goes_on_after_places_are_forgotten(self, name: str) -> None:
        held, seen = Held(name), rows_of(96)
        held.in_parts(seen, MOST_ROWS)
        held.table.empty(np.array([0, 3]))
        held.detector.forget(np.array([0, 3]), held.shared)
        assert np.isfinite(held.in_parts(rows_of(96, seed=2), MOST_ROWS)).all()

    def test_has_a_page(self, name: str) -> None:
        page = Path(__file__).parents[3] / "docs" / "detectors" / f"{name}.md"
        text = page.read_text()
        for heading in ("What it stops", "What it does not stop", "Cost", "Source"):
            assert f"## {heading}" in text, f"{page} lacks the section {heading!r}"


def test_all_together_stay_below_the_bound() -> None:
    """With the digests that `watch` keeps of each caller by default."""
    columns = [column for name in DETECTORS for column in load(name).columns(WIDTH).values()]
    assert sum(column.size for column in columns) + 2048 * DIGEST_BYTES <= MOST_BYTES


def _only_salt(shared: Mapping[str, Array]) -> bool:
    return sum(x.size for x in shared.values()) <= 4


def _fresh(x: Array, held: Held) -> Array:
    """The same random numbers as the other has drawn."""
    return next((y.copy() for y in held.shared.values() if y.shape == x.shape), x)
