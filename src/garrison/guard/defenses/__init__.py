"""The registry of defenses: a new defense is one file here and one line below."""

from __future__ import annotations

DEFENSES: dict[str, str] = {
    "bounds": "garrison.guard.defenses.bounds:Bounds",
    "budget": "garrison.guard.defenses.budget:Budget",
    "projection": "garrison.guard.defenses.projection:Projection",
    "max-probability": "garrison.guard.defenses.max_probability:MaxProbability",
    "energy": "garrison.guard.defenses.energy:Energy",
    "adaptive-misinformation": "garrison.guard.defenses.adaptive_misinformation:AdaptiveMisinformation",
    "reject-option": "garrison.guard.defenses.reject_option:RejectOption",
    "release": "garrison.guard.defenses.release:Release",
    "repeat-watch": "garrison.guard.defenses.repeat_watch:RepeatWatch",
}
