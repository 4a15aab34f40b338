"""Garrison: guard a machine-learning prediction service, and measure what an attacker still gets.

The commands are functions here (see `garrison.api`), loaded when they are used: importing this package pulls in no torch, no onnx and
no web framework.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from garrison.api import harden, keygen, predict, run_audit, seal, serve, verify

# ONNX Runtime 1.29 and newer sends usage data, hashes of a model's weights among them, to its maker unless told not to; it looks when
# it is loaded, so this comes first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = ["__version__", "harden", "keygen", "predict", "run_audit", "seal", "serve", "verify"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("garrison.api"), name)
