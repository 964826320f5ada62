"""Proximal policy optimization. Knows nothing of Vision Transformers."""
