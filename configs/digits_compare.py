"""All methods beside PRANCE on the embedded digits, at 50 % and 35 % of the dense MACs.

Command:
  python -m prance_jax compare --config configs/digits_compare.py --workdir runs/digits_compare
Cost:
  Expected: an hour a seed on 2 CPU cores with jemalloc. Without 'mctf_consistent' and
  'diffrate_learned' it took 50 minutes on a busy machine.
Results:
  digits_compare.md: a row for each method, not fine-tuned and fine-tuned, in comparison.json and
  comparison.md.

The dense network is that of digits.py. Methods are fine-tuned from it, each for as many steps, with
it as the teacher; so is the dense network itself. PRANCE has one network and one selector for both
budgets, from its own three stages.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("digits.py")))["get_config"]()
    config.name = "digits_compare"
    config.seeds = (0, 1, 2)
    config.budgets = (0.5, 0.35)
    config.selector.updates = 300
    config.selector.cost_weights = (-0.02, 0.4)
    config.finetune.every_budget_steps = 1600
    config.compare.shares = (0.5, 0.35)
    config.compare.finetune.steps = 400
    config.evaluation = {"speed_seconds": 40.0}  # for all programs together, some thirty of them
    return config
