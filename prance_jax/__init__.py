"""PRANCE in JAX: Vision Transformers that spend compute per image."""

__version__ = "0.1.0"
