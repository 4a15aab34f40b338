from __future__ import annotations

import pytest
from scipy.stats import beta

from garrison.confidence import lower_limit, upper_limit


@pytest.mark.parametrize(("events", "rows"), [(0, 100), (1, 100), (16, 5000), (300, 700), (99, 100), (17, 60)])
@pytest.mark.parametrize("level", [0.95, 0.975, 0.999])
def test_limits_are_those_of_clopper_and_pearson(events: int, rows: int, level: float) -> None:
    assert upper_limit(events, rows, level) == pytest.approx(beta.ppf(level, events + 1, rows - events), abs=1e-9)
    expected = beta.ppf(1 - level, events, rows - events + 1) if events else 0.0
    assert lower_limit(events, rows, level) == pytest.approx(expected, abs=1e-9)


def test_limits_at_the_ends() -> None:
    assert upper_limit(7, 7) == upper_limit(0, 0) == 1.0
    assert lower_limit(0, 7) == lower_limit(0, 0) == 0.0
