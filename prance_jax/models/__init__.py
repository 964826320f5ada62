"""The Flax modules: elastic layers, attention, block, ViT, and the one walk through them."""
