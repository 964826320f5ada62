"""Trained networks as functions of images, in Python or as exported files.

- `model`: `AdaptiveModel`, a network with its selector and buckets.
- `load`: from a trained workdir to an `AdaptiveModel`.
- `export`: writes an `AdaptiveModel` as one file.
- `exported`: reads such a file and runs it, without the code of the models.
"""
