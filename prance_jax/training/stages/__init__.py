"""The training step of each stage, one file each."""
