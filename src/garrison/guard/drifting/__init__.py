"""Drift: what callers ask and the model answers, against a reference that was frozen and signed; and who moves it."""
