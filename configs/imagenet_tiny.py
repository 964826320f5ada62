"""PRANCE `tiny` on ImageNet (DeiT-T's size); otherwise as configs/imagenet_small.py.

Command:   python -m prance_jax train --config configs/imagenet_tiny.py --config.data.folder.path=DIR --workdir runs/tiny
           Without data: python -m prance_jax benchmark --config configs/imagenet_tiny.py
Cost:      training: expected, not measured: half a day on 32 chips of TPU v5e. The benchmark: about 10 minutes on 2 CPU cores.
Result:    training: expected, not measured; the released checkpoints stand at 72 to 73.8 % top-1 with 1 GMAC.
           Speed on random weights with an even spread of plans: README.md, "Serving".
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("imagenet_small.py")))["get_config"]("tiny")
    # So small a network can remember its activations.
    config.model.remat = False
    return config
