"""The batch engine for TTAPI's Nano Banana image endpoint."""

__version__ = "0.1.0"
