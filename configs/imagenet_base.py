"""PRANCE `base` on ImageNet (the size of DeiT-B), parameters divided over 8 chips.

Command:
  python -m prance_jax train --config configs/imagenet_base.py --config.data.folder.path=DIR
      --workdir runs/base
Cost:
  Expected, not measured: about three days on 32 chips of TPU v5e.
Results:
  imagenet_base.md. Training is not measured; the released checkpoints have 81.4 to 81.6 % top-1 at
  10.5 to 11.5 GMACs.

All other settings are those of imagenet_small.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("imagenet_small.py")))["get_config"]("base")
    config.mesh = ConfigDict({"fsdp": 8})
    return config
