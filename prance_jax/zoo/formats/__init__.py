"""Formats of weight files, and the names that other libraries give to parameters."""
