"""Runs a bundle's graphs."""
