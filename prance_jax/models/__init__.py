"""The elastic Vision Transformer and its forward pass."""
