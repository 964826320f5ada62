"""The demo: a cascade on embedded cluttered digits, for two CPU cores. One seed, in a few minutes.

Command:
  bash launch/demo.sh
  python -m prance_jax train --config configs/demo.py --workdir runs/demo    # what demo.sh runs
Cost:
  8 minutes on 2 quiet CPU cores, compilation included.
Results:
  demo.md. The run ends with a table of all methods, also in results.json and results.md, and with report.html.

The same cascade as digits_cascade.py with easier digits, half of the steps and one budget.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("digits_cascade.py")))["get_config"]()
    config.name = "demo"
    config.data.digits.update(min_scale=13.0, clutter_ink=0.6, validation_images=2000, test_images=4000)
    config.dense.steps = 1600
    config.meta.steps = 1000
    config.finetune.update(steps=1400, batch=32)
    config.compare.finetune.update(steps=2400, batch=32)
    config.evaluation.speed_seconds = 3.0
    config.cascade.budgets = (0.33,)
    config.cascade.selector.update(pool=8192)
    return config
