"""Composition root and Python API."""
