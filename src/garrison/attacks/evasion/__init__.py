"""The registry of evasion attacks (OWASP ML01): a new attack is one file here and one line below."""

from __future__ import annotations

EVASIONS: dict[str, str] = {
    "hopskipjump": "garrison.attacks.evasion.hopskipjump:HopSkipJump",
    "square": "garrison.attacks.evasion.square:Square",
}
