"""Accuracy and cost of a rule on a set of images, and the search of the best static structure."""
