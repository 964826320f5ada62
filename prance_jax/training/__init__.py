"""The three stages, one loop, losses, optimizer, checkpoints, metrics."""
