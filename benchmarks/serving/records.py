"""What was measured, line by line in a file: an interrupted run goes on where it was, and figures can be made again without measuring.

A line is one arm in one round. A round counts only when it was finished, because ratios are taken within a round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Key:
    """Which measurement: a stage (`guard`, `peers`, `latency`, `start`, `runtime`), a model, how many connections, which round."""

    stage: str
    model: str
    connections: int
    round: int


@dataclass(frozen=True, slots=True)
class Record:
    """One arm in one round. `failure` says why there is no figure; then the figures are 0."""

    stage: str
    model: str
    connections: int
    round: int
    arm: str
    rate: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    processor_us: float = 0.0
    requests: int = 0
    failure: str = ""

    @property
    def key(self) -> Key:
        return Key(self.stage, self.model, self.connections, self.round)


class Book:
    """The records of one run.

    Args:
        folder: where they are kept.
        fingerprint: of code and settings; records of another are set aside.
        fresh: set them aside in any case.
    """

    def __init__(self, folder: Path, fingerprint: str, *, fresh: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, mark = folder / "rounds.jsonl", folder / "fingerprint"
        same = mark.exists() and mark.read_text() == fingerprint
        if self._file.exists() and (fresh or not same):
            self._file.rename(self._file.with_suffix(".old.jsonl"))
        mark.write_text(fingerprint)
        self.records: list[Record] = read(self._file)
        # What was cut short is not left in front of what comes.
        self._file.write_text("".join(map(_line, self.records)))
        self._done = {record.key for record in self.records}

    def has(self, key: Key) -> bool:
        return key in self._done

    def add(self, records: Iterable[Record]) -> None:
        """A finished round, all its arms at once."""
        found = list(records)
        with self._file.open("a") as file:
            file.write("".join(map(_line, found)))
        self.records += found
        self._done |= {record.key for record in found}


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"


def read(file: Path) -> list[Record]:
    """What is in a file; a last line that was cut short is left out, and with it its round."""
    if not file.exists():
        return []
    found, cut = [], None
    for line in file.read_text().splitlines():
        try:
            found.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            cut = found[-1].key if found else None
    return [record for record in found if record.key != cut]


def fingerprint(settings: object) -> str:
    """Of the code that is measured, the code that measures, and the settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for folder in (ROOT / "src" / "garrison", ROOT / "benchmarks" / "serving"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
