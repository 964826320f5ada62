"""Measurements of speed and of guarantees on the machine at hand."""
