"""Which structures a network has, and what each costs. Needs no Flax and no parameters."""
