"""Sets of tokens, and what every method of token reduction is made of."""
