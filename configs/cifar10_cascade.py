"""Adaptivity on CIFAR-10 (JPEG) for CPU cores: a look at half the side, then stop, or look again at all of it.

Command:
  python -m prance_jax train --config configs/cifar10_cascade.py --config.data.folder.path=DIR
      --workdir runs/cifar10_cascade
  DIR as in cifar10.py.
Cost:
  57 minutes a seed on one CPU core; two cores take one seed each.
Results:
  cifar10_cascade.md.

Network and dense stage are those of cifar10_cpu.py, looks and selector those of digits_cascade.py. Every row has 8,200
steps in all.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    read = lambda name: runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))["get_config"]()
    config, adaptive = read("cifar10_cpu"), read("digits_cascade")
    config.name = "cifar10_cascade"
    config.token_modes = ("prune",)
    optimizer = {**config.dense.optimizer.to_dict(), "learning_rate": 5e-3}
    config.meta.update(steps=1600, random_batch=32, reduce_from=0.0, optimizer={**optimizer, "warmup": 100})
    config.finetune.update(steps=1600, teacher="dense_tuned", optimizer={**optimizer, "warmup": 50})
    config.compare = {"finetune": {**config.finetune.to_dict(), "steps": 3200}}
    config.selector = adaptive.selector
    config.baselines = adaptive.baselines
    config.cascade = adaptive.cascade
    config.evaluation.update(chunk=25, speed_seconds=8.0)
    return config
