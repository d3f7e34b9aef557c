"""Essence knowledge distillation for hybrid speech recognition."""

__version__ = "0.1.0"
