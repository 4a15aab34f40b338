"""Finished trials are kept exactly; anything else is as good as none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from garrison.attacks.base import Trial
from garrison.attacks.exam import Picture
from garrison.audit.cache import TrialCache

SHOWN = Picture("a source and its result", ("source", "result"), (np.zeros((1, 2, 3)), np.full((3, 4, 5), 0.5)))
TRIAL = Trial(
    "Knockoff()", 5, 0, 5, 1, 0, 0.5, 0.1, {"clone_accuracy": np.array([0.0, 1.0, 0.3])}, {"leaves": 26.0}, (SHOWN,)
)

PLAIN = [name for name in Trial.__dataclass_fields__ if name not in {"scores", "pictures"}]


def test_a_trial_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path / "c")
    assert cache.get("k") is None
    cache.put("k", TRIAL)
    found = cache.get("k")
    assert found is not None
    assert np.array_equal(found.scores["clone_accuracy"], TRIAL.scores["clone_accuracy"])
    assert [getattr(found, n) for n in PLAIN] == [getattr(TRIAL, n) for n in PLAIN]
    (picture,) = found.pictures
    assert (picture.caption, picture.names) == (SHOWN.caption, SHOWN.names)
    assert all(np.array_equal(a, b) for a, b in zip(picture.images, SHOWN.images, strict=True))
    assert cache.get("other") is None


def test_incomplete_trials_are_not_kept(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    cache.put("k", replace(TRIAL, failed=1))
    assert cache.get("k") is None


def test_what_an_attack_could_not_tell_is_left_out(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    cache.put("k", replace(TRIAL, told={"known": 1.0, "unknown": float("nan")}))
    found = cache.get("k")
    assert found is not None
    assert found.told == {"known": 1.0}


def test_a_broken_file_is_no_trial(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    cache.put("k", TRIAL)
    whole = (tmp_path / "k.json").read_bytes()
    for broken in (b"", whole[:-20], whole.replace(b'"format":3', b'"format":1'), b"{}"):
        (tmp_path / "k.json").write_bytes(broken)
        assert cache.get("k") is None


def test_broken_bytes_are_no_measurement(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    for broken in (b"", b'[{"attack":"\xff"}]', b"[" * 100_000):
        for kind in ("honest", "evasion", "json"):
            (tmp_path / f"k.{kind}").write_bytes(broken)
        assert (cache.honest("k"), cache.evasion("k"), cache.get("k")) == (None, None, None)


def test_without_a_folder_nothing_is_kept() -> None:
    cache = TrialCache(None)
    cache.put("k", TRIAL)
    assert cache.get("k") is None
