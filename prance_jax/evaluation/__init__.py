"""Accuracy and cost of a network under a decision policy."""
