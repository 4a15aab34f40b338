"""A small table of a plan."""

from __future__ import annotations

TABLE = """
name = "table"
seeds = [0, 1]
test_rows = 200
outside_rows = 20

[[attacks]]
budgets = [20, 40]
parameters = { epochs = 2, fewest_steps = 2 }

[[attacks]]
name = "jbda"
budgets = [30]
parameters = { epochs = 1, fewest_steps = 2, round_epochs = 1, seeds = 10 }

[[columns]]
name = "naive"

[[columns]]
name = "defense-aware"
by_arm = true
tactics = [{ name = "repeats", times = 2 }]

[[columns]]
name = "in-distribution"
tactics = [{ name = "in-distribution" }]
budgets = { knockoff = [10] }
senseless = { jbda = "it begins with such rows" }

[[arms]]
name = "rounded"
keep = ["bounds"]
replaces = [{ name = "release", parameters = { mode = "rounded", decimals = 1 } }]
attacks = ["knockoff"]
columns = ["naive", "defense-aware"]
seeds = [0]
aware = [{ name = "top-1" }]

[[arms]]
name = "labels alone"
replaces = [{ name = "release", parameters = { mode = "labels" } }]
attacks = ["knockoff"]
columns = ["naive"]
seeds = [0]
"""
