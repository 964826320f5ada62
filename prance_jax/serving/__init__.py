"""Trained networks as functions of images, in Python or as exported files."""
