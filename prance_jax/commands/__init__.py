"""What the commands of `prance_jax.cli` do, a file for each kind; heavy imports wait until a command runs."""
