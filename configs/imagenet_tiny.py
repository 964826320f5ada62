"""PRANCE `tiny` on ImageNet (the size of DeiT-T).

Command:
  python -m prance_jax train --config configs/imagenet_tiny.py --config.data.folder.path=DIR
      --workdir runs/tiny
  python -m prance_jax benchmark --config configs/imagenet_tiny.py    # needs no data
Cost:
  Training: expected, not measured: half a day on 32 chips of TPU v5e. The benchmark: about 10
  minutes on 2 CPU cores.
Results:
  imagenet_tiny.md: speed on random weights with an even spread of buckets. Training is not
  measured; the released checkpoints have 72 to 73.8 % top-1 at 1 GMAC.

All other settings are those of imagenet_small.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("imagenet_small.py")))["get_config"]("tiny")
    # The activations of so small a network fit into memory.
    config.model.remat = False
    return config
