"""Asks a prediction service: `Client`, `AsyncClient`, and what they return. Needs httpx; no torch, no onnx, no web server."""

from __future__ import annotations

from garrison.client.http import AsyncClient, Client
from garrison.client.prediction import Prediction

__all__ = ["AsyncClient", "Client", "Prediction"]
