"""Every figure of an accelerator in one call of a few minutes."""
