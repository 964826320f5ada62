"""Accuracy and cost of networks on fixed sets of images."""
