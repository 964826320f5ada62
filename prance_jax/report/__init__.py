"""Evaluation, search, speed, and the table of results."""
