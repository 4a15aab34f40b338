"""What `garrison drift report` says of an alarm."""

from __future__ import annotations

from garrison.cli.drift import _alarm
from garrison.guard.drifting.blame import Blame
from garrison.guard.drifting.report import DriftAlarm


def test_who_was_named_is_said_beside_who_moves_it_now() -> None:
    rung = DriftAlarm(1, "psi", "age", 0.2, 0.1, 515, 0.0, active=True)
    ann, mallory, nobody = Blame(("ann",), ()), Blame(("mallory",), ()), Blame((), ())
    assert "UTC; moved by nobody in particular; rings" in _alarm(rung)
    assert "UTC; moved by ann; rings" in _alarm(rung.found(ann))
    later = rung.found(ann).found(mallory)
    assert "UTC; named so far: ann, mallory; moved now by mallory; rings" in _alarm(later)
    assert "UTC; named so far: ann; moved now by nobody in particular; rings" in _alarm(rung.found(ann).found(nobody))
    assert "UTC; moved by ann, mallory; over" in _alarm(later.over())
