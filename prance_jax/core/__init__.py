"""What every other folder uses and what knows nothing of Vision Transformers."""
