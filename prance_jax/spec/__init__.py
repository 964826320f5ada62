"""What can be chosen in a network, and what a choice costs. No Flax, no parameters."""
