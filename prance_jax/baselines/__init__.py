"""Networks of other methods: SPViT, DynamicViT, PiT, DiffRate, CDCP."""
