"""The stages of a cascade in a workdir, and the rows of its table."""
