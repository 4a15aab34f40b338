"""`make bench-quick`: Garrison's own servers on the LeNet-size model, as ratios to the unguarded one, against ratios that were kept.

Ratios within a round bear a busy machine and a slower one; the tolerance is wide, so that what fails here is a regression and no noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.serving.figures import paired, processor, ratio
from benchmarks.serving.records import Record

EXPECTED = Path(__file__).parent / "expected.json"
TOLERANCE = 1.35
"""So many times the kept ratio fails."""
ARMS, CONNECTIONS = ("guarded", "isolated", "sealed"), (32, 1)


def ratios(records: Sequence[Record]) -> dict[str, float]:
    """Processor time a request, each arm's to the unguarded server's: the median over rounds. What failed is not there."""
    found = {}
    for arm in ARMS:
        for connections in CONNECTIONS:
            values = paired(records, ("guard", "lenet", connections), (arm, "unguarded"), processor, ratio)
            if values:
                found[f"{arm}/unguarded, {connections}"] = statistics.median(values)
    return found


def compare(found: Mapping[str, float], expected: Mapping[str, float]) -> tuple[list[str], bool]:
    """What to print, and whether nothing has become slower than the tolerance allows."""
    lines, held = [], True
    for name, kept in expected.items():
        value = found.get(name)
        good = value is not None and value <= kept * TOLERANCE
        held = held and good
        told = "not measured" if value is None else f"{value:.2f}"
        lines.append(
            f"{'ok  ' if good else 'FAIL'} {name:24s} {told} (kept {kept:.2f}, at most {kept * TOLERANCE:.2f})"
        )
    return lines, held
