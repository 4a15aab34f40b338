"""Asks a model on another Open Inference Protocol server, for a gateway and for hardening one. What comes back is checked, never passed on."""
