"""Token sets and the methods that reduce them; one short file per method, one signature for all."""

from prance_jax.tokens.registry import METHODS, TokenMethod, get_method
from prance_jax.tokens.tokenset import AttentionSignals, TokenSet, initial_tokens, kept_count, rate_for

__all__ = [
    "METHODS",
    "AttentionSignals",
    "TokenMethod",
    "TokenSet",
    "get_method",
    "initial_tokens",
    "kept_count",
    "rate_for",
]
