"""Models by name; pretrained weights in and out."""
