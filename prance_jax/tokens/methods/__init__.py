"""Token reduction methods: one file each, with its MACs; `registry` lists them by name."""
