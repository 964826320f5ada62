"""Latency tables of parts of a network, and ahead-of-time compilation for TPUs."""
