"""Methods of token reduction: one file each, with its multiply-accumulates; `registry` lists them by name."""
