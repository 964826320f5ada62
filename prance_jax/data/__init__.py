"""Data sources: batches of images and labels for training, fixed sets for evaluation."""
