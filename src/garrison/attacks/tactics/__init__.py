"""The registry of what attackers who know the defense do around any attack: a new tactic is one file here and one line below.

A tactic stands between an attack and its meter: it asks otherwise, reads the answers otherwise, or knows more. The meter behind it
counts every row that is sent.
"""

from __future__ import annotations

TACTICS: dict[str, str] = {
    "cover-traffic": "garrison.attacks.tactics.cover_traffic:CoverTraffic",
    "drop-suspicious": "garrison.attacks.tactics.drop_suspicious:DropSuspicious",
    "in-distribution": "garrison.attacks.tactics.in_distribution:InDistribution",
    "repeats": "garrison.attacks.tactics.repeats:Repeats",
    "restore-bayes": "garrison.attacks.tactics.restore_bayes:RestoreBayes",
    "restore-network": "garrison.attacks.tactics.restore_network:RestoreNetwork",
    "sybil": "garrison.attacks.tactics.sybil:Sybil",
    "top-1": "garrison.attacks.tactics.top_1:Top1",
}
