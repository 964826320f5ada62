"""PRANCE `base` on ImageNet (DeiT-B's size), parameters divided over 8 chips; otherwise as configs/imagenet_small.py.

Command:   python -m prance_jax train --config configs/imagenet_base.py --config.data.folder.path=DIR --workdir runs/base
Cost:      expected, not measured: about three days on 32 chips of TPU v5e.
Result:    expected, not measured; the released checkpoints stand at 81.4 to 81.6 % top-1 with 10.5 to 11.5 GMACs.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("imagenet_small.py")))["get_config"]("base")
    config.mesh = ConfigDict({"fsdp": 8})
    return config
