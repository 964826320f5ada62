"""Configuration: dataclasses, and how they are read from files and command lines."""
