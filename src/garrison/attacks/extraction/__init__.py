"""The registry of extraction attacks: a new attack is one file here and one line below."""

from __future__ import annotations

ATTACKS: dict[str, str] = {
    "activethief": "garrison.attacks.extraction.activethief:ActiveThief",
    "adaptive-retraining": "garrison.attacks.extraction.retraining:AdaptiveRetraining",
    "boundary-walking": "garrison.attacks.extraction.boundary_walking:BoundaryWalking",
    "cloudleak": "garrison.attacks.extraction.cloudleak:CloudLeak",
    "copycat": "garrison.attacks.extraction.copycat:Copycat",
    "critical-points": "garrison.attacks.extraction.critical_points:CriticalPoints",
    "data-free": "garrison.attacks.extraction.data_free:DataFree",
    "equation-solving": "garrison.attacks.extraction.equation_solving:EquationSolving",
    "hyperparameter-stealing": "garrison.attacks.extraction.hyperparameter_stealing:HyperparameterStealing",
    "jbda": "garrison.attacks.extraction.jbda:Jbda",
    "jbda-tr": "garrison.attacks.extraction.jbda:JbdaTargeted",
    "kernel-equations": "garrison.attacks.extraction.kernel_equations:KernelEquations",
    "knockoff": "garrison.attacks.extraction.knockoff:Knockoff",
    "knockoff-adaptive": "garrison.attacks.extraction.knockoff_adaptive:KnockoffAdaptive",
    "lowd-meek": "garrison.attacks.extraction.lowd_meek:LowdMeek",
    "network-equations": "garrison.attacks.extraction.network_equations:NetworkEquations",
    "path-finding": "garrison.attacks.extraction.path_finding:PathFinding",
    "path-finding-missing": "garrison.attacks.extraction.path_finding_missing:PathFindingMissing",
    "random-labels": "garrison.attacks.extraction.random_labels:RandomLabels",
    "seeds-alone": "garrison.attacks.extraction.seeds_alone:SeedsAlone",
    "uniform-retraining": "garrison.attacks.extraction.retraining:UniformRetraining",
}
