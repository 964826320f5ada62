"""Cluttered digits: the data set that comes with the package."""
