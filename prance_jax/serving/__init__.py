"""Trained networks as functions of images, in Python or as exported files.

- `model`: `AdaptiveModel`, a network with its selector and buckets.
- `cascade_model`: `CascadeModel`, looks and exits with their selector.
- `sharded`: either of them over the devices of a mesh.
- `load`: from a trained workdir to one of the two.
- `export`: writes a model as one file.
- `exported`: reads such a file and runs it, without the code of the models.
"""
