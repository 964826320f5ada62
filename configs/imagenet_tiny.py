"""PRANCE `tiny` at ImageNet's shapes: 224 pixels, patches of 16, 1000 classes.

Command:   python -m prance_jax benchmark --config configs/imagenet_tiny.py
Cost:      about 10 minutes on 2 CPU cores.
Result:    see README.md, "Serving": speed on random weights with an even spread of plans. Not a training recipe yet:
           its images are noise.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "imagenet_tiny",
            "data": {"name": "noise", "noise": {"image_size": 224, "channels": 3, "num_classes": 1000}},
            "model": {"space": {"preset": "tiny"}, "patch_size": 16, "first_group": "max"},
        }
    )
