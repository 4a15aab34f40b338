"""Attacks: what a stranger can get out of a service by asking it. `base.py` holds the contract, one folder a goal, one file an attack."""
