"""Garrison: guard a machine-learning prediction service, and measure what an attacker still gets.

Importing this package pulls in no torch, no onnx and no web framework.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
