"""Garrison: guard a machine-learning prediction service, and measure what an attacker still gets.

Importing this package pulls in no torch, no onnx and no web framework.
"""

from __future__ import annotations

import os

# ONNX Runtime 1.29 and newer sends usage data, hashes of a model's weights among them, to its maker unless told not to; it looks when
# it is loaded, so this comes first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = ["__version__"]
