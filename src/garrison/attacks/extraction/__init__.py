"""The registry of extraction attacks: a new attack is one file here and one line below."""

from __future__ import annotations

ATTACKS: dict[str, str] = {
    "equation-solving": "garrison.attacks.extraction.equation_solving:EquationSolving",
    "knockoff": "garrison.attacks.extraction.knockoff:Knockoff",
    "path-finding": "garrison.attacks.extraction.path_finding:PathFinding",
    "random-labels": "garrison.attacks.extraction.random_labels:RandomLabels",
}
