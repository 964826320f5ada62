"""The commands of `python -m prance_jax`, one file each."""
