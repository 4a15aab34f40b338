"""The registry of defenses: a new defense is one file here and one line below."""

from __future__ import annotations

DEFENSES: dict[str, str] = {
    "bounds": "garrison.guard.defenses.bounds:Bounds",
    "schema": "garrison.guard.defenses.schema:Schema",
    "budget": "garrison.guard.defenses.budget:Budget",
    "proof-of-work": "garrison.guard.defenses.proof_of_work:ProofOfWork",
    "sanctions": "garrison.guard.defenses.sanctions:Sanctions",
    "projection": "garrison.guard.defenses.projection:Projection",
    "max-probability": "garrison.guard.defenses.max_probability:MaxProbability",
    "energy": "garrison.guard.defenses.energy:Energy",
    "mahalanobis": "garrison.guard.defenses.mahalanobis:Mahalanobis",
    "knn": "garrison.guard.defenses.knn:Knn",
    "feature-squeezing": "garrison.guard.defenses.feature_squeezing:FeatureSqueezing",
    "watch": "garrison.guard.defenses.watch:Watch",
    "adaptive-misinformation": "garrison.guard.defenses.adaptive_misinformation:AdaptiveMisinformation",
    "deceptive-misinformation": "garrison.guard.defenses.deceptive_misinformation:DeceptiveMisinformation",
    "label-preserving-misinformation": "garrison.guard.defenses.label_preserving_misinformation:LabelPreservingMisinformation",
    "reject-option": "garrison.guard.defenses.reject_option:RejectOption",
    "randomized-smoothing": "garrison.guard.defenses.randomized_smoothing:RandomizedSmoothing",
    "reverse-sigmoid": "garrison.guard.defenses.reverse_sigmoid:ReverseSigmoid",
    "prediction-poisoning": "garrison.guard.defenses.prediction_poisoning:PredictionPoisoning",
    "gradient-redirection": "garrison.guard.defenses.gradient_redirection:GradientRedirection",
    "modelguard-w": "garrison.guard.defenses.modelguard_w:ModelguardW",
    "modelguard-s": "garrison.guard.defenses.modelguard_s:ModelguardS",
    "release": "garrison.guard.defenses.release:Release",
    "watermark": "garrison.guard.defenses.watermark:Watermark",
    "drift": "garrison.guard.defenses.drift:Drift",
    "repeat-watch": "garrison.guard.defenses.repeat_watch:RepeatWatch",
}
