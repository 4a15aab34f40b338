"""Out-of-distribution score by the distance to the k-th nearest training features (Sun, Ming, Zhu and Li, ICML 2022).

The distance is computed by the model's own graph (`garrison.hardening.feature_scores`), against a reduced bank of features of training rows.
"""

from __future__ import annotations

from typing import ClassVar

from garrison.guard.defenses.mahalanobis import FeatureScore


class Knn(FeatureScore, frozen=True):
    """Give the signal `confidence`: minus the distance of the normed features to the k-th nearest of the bank, in [-2, 0].

    Blind to inputs that are crafted to have the features of honest ones. The bank tells its reader the features of some training rows.
    """

    name: ClassVar[str] = "knn"
