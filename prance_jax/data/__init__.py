"""Data sources: where images and labels come from. See `source.py` for what every source offers."""
