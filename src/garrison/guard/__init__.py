"""The guard: the ordered defenses between a model's raw scores and what a caller is told."""
