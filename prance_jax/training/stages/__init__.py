"""Training steps, one file for each stage."""
