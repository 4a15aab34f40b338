"""The registry of detectors: a new detector is one file here and one line below."""

from __future__ import annotations

DETECTORS: dict[str, str] = {
    "accounts": "garrison.guard.detectors.accounts:Accounts",
    "ood-rate": "garrison.guard.detectors.ood_rate:OodRate",
    "ood-cover": "garrison.guard.detectors.ood_cover:OodCover",
    "hardness": "garrison.guard.detectors.hardness:Hardness",
    "bounded-prada": "garrison.guard.detectors.bounded_prada:BoundedPrada",
    "near-duplicates": "garrison.guard.detectors.near_duplicates:NearDuplicates",
    "small-steps": "garrison.guard.detectors.small_steps:SmallSteps",
    "coverage": "garrison.guard.detectors.coverage:Coverage",
}
