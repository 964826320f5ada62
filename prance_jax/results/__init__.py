"""Rows of results, their tables, significance and plots."""
