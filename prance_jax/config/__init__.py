"""Configuration: dataclasses, and their reading from files and command lines."""
