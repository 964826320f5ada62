"""CIFAR-10 (JPEG), reduced to what two CPU cores do in about an hour: a small network, few epochs, one seed.

Command:   python -m prance_jax train --config configs/cifar10_cpu.py --config.data.folder.path=DIR --workdir runs/cifar10
           DIR as in configs/cifar10.py.
Cost:      80 minutes on 2 CPU cores that had other work for a part of them; expected: an hour alone, with jemalloc (README.md).
Result:    README.md, "CIFAR-10 (JPEG)": dense 73.1 %, PRANCE 69.3 to 70.6 % at 43 to 52 % of the MACs. The network sees the
           training set seven times: its accuracy is far from what CIFAR-10 allows, and only differences between rows mean
           something.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("cifar10.py")))["get_config"]()
    muon = {"name": "muon", "learning_rate": 1e-2, "warmup": 200, "weight_decay": 0.05, "ema": 0.99}
    config.name = "cifar10_cpu"
    config.seeds = (0,)
    config.data.augment = {"crop": "pad", "flip": True}
    config.model.dtype = "float32"
    config.model.space.update(
        super_width=64, super_ratio=2.0, heads=4, head_dim=16, widths=(32, 40, 48, 56, 64), ratios=(1.0, 1.5, 2.0),
        layers=(1, 2, 2, 1),
    )  # fmt: skip
    config.dense.update(steps=5000, batch=64, label_smoothing=0.0, optimizer=muon)
    config.meta.update(steps=3800, batch=64, random_batch=32, label_smoothing=0.0, optimizer=muon)
    config.selector.update(updates=120, batch=256, pool=16384, hidden=(64, 64))
    config.finetune.update(
        steps=1200, batch=64, label_smoothing=0.0, optimizer={**muon, "learning_rate": 5e-3, "warmup": 50}
    )
    config.evaluation.batch = 250
    return config
