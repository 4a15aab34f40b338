"""Detectors as their papers have them, offline: to be compared with, not to be served."""
