"""Serving: plans, the adaptive executor, a trained workdir as a function."""
