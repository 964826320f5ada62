"""One selector for all budgets, against one selector per budget, on the embedded digits.

Command:
  python -m prance_jax train --config configs/digits_budgets.py --workdir runs/digits_budgets
Cost:
  Expected: about half an hour a seed on 2 CPU cores (measured only on a busy machine).
Results:
  digits_budgets.md. Rows prance_prune_30 and so on share one network and one selector. Rows
  single_prune_30 and so on have one of each per budget, trained as in digits.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("digits.py")))["get_config"]()
    config.name = "digits_budgets"
    config.seeds = (0, 1)
    config.budgets = (0.3, 0.4, 0.5, 0.6, 0.75)
    config.selector.updates = 300
    config.selector.cost_weights = (-0.02, 0.4)
    # All budgets share these steps; a selector for one budget has 800 of its own.
    config.finetune.every_budget_steps = 2400
    config.baselines = ConfigDict({"single_budget": True})
    return config
