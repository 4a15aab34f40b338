"""Asks a prediction service: `Client`, `AsyncClient`, and what they return. Needs httpx; no torch, no onnx, no web server."""

from __future__ import annotations

from garrison.attest.policy import Policy, load_policy
from garrison.client.http import AsyncClient, Client
from garrison.client.prediction import Prediction
from garrison.client.sealed import Attested

__all__ = ["AsyncClient", "Attested", "Client", "Policy", "Prediction", "load_policy"]
