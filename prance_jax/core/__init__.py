"""Basics that every other folder uses: errors, checks, sizes, losses, sharding, files, timing."""
