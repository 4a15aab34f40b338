"""What the registry says of one set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from garrison.datasets.content import Read
from garrison.datasets.roads import Road, SourceFile

Kind = Literal["images", "table", "model"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One set.

    Attributes:
        kind: "images", "table", or "model" (a file to `fetch`, not to `load`).
        summary: what it is, in one line.
        licence: under which terms; "fetch, do not pass on" where its owner has stated none.
        source: where it comes from, and whom to credit.
        files: its pinned files.
        roads: where they may be had, in the order in which they are tried.
        splits: split -> number of rows.
        read: makes arrays of the files; None for a model.
    """

    kind: Kind
    summary: str
    licence: str
    source: str
    files: tuple[SourceFile, ...]
    roads: tuple[Road, ...]
    splits: Mapping[str, int]
    read: Read | None
