"""The full table on the embedded digits: three token modes, all rows, three seeds.

Command:
  python -m prance_jax train --config configs/digits_full.py --workdir runs/digits_full
Cost:
  About an hour on 2 CPU cores.
Results:
  digits_full.md.

Beyond digits.py, two baselines are fine-tuned for as many steps as PRANCE: a random policy under
random decisions of the same mean MACs, and the best static structure under itself.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("digits.py")))["get_config"]()
    config.name = "digits_full"
    config.seeds = (0, 1, 2)
    config.token_modes = ("prune", "merge", "prune_merge")
    config.baselines = ConfigDict({"finetune": True})
    return config
