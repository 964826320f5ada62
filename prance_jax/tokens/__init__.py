"""Token sets, and the building blocks of token reduction methods."""
