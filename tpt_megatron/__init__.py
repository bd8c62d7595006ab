"""Thinking Augmented Pre-training: raw documents to an evaluated model."""

__version__ = "0.1.0"
