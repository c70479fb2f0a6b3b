"""Sterna runs Qwen3.6-35B-A3B and checkpoints of the same architecture as a private coding agent."""

__version__ = "0.1.0"
