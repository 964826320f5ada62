"""Learned structural pruning of channels, which are then really removed (CAIT's CDCP)."""
