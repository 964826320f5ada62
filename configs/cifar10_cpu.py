"""CIFAR-10 (JPEG), reduced to what two CPU cores do in about an hour: a small network, few epochs, one seed.

Command:   python -m prance_jax train --config configs/cifar10_cpu.py --config.data.folder.path=DIR --workdir runs/cifar10
           DIR as in configs/cifar10.py.
Cost:      90 minutes on 2 CPU cores that had other work for a part of them; expected: an hour alone, with jemalloc (README.md).
Result:    README.md, "CIFAR-10 (JPEG)": dense 73.1 %, PRANCE 69.3 to 70.6 % at 43 to 52 % of the MACs. The network sees the
           training set seven times: its accuracy is far from what CIFAR-10 allows, and only differences between rows mean
           something.

The log's last line of each stage of that run (times are of its last session):

    seed0/dense                 5000/5000  done in 20:18  loss 0.7234  accuracy 0.7492
    seed0/meta                  3800/3800  done in 7:21   loss 1.859   accuracy 0.7203  accuracy_random 0.6422
    seed0/prune/selector         120/120   done in 1:16   reward -0.05497  correct 0.6848  macs_kept 0.4433
    seed0/prune/finetune        1200/1200  done in 5:39   loss 0.4417  accuracy 0.7     macs_kept 0.4345
    seed0/merge/selector         120/120   done in 2:12   reward -0.04748  correct 0.6904  macs_kept 0.5001
    seed0/merge/finetune        1200/1200  done in 7:11   loss 0.419   accuracy 0.718   macs_kept 0.5131
    seed0/prune_merge/selector   120/120   done in 2:15   reward -0.04135  correct 0.6867  macs_kept 0.4963
    seed0/prune_merge/finetune  1200/1200  done in 5:45   loss 0.433   accuracy 0.7141  macs_kept 0.4988
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
    # Seven passes are few for a network that shares its steps with smaller ones: stage one starts at the dense network.
    config.meta.update(
        init_from="dense", steps=2400, batch=64, random_batch=64, largest_alone=0.0, reduce_from=0.1,
        label_smoothing=0.0, optimizer=muon,
    )  # fmt: skip
    config.selector.update(updates=150, batch=256, pool=16384, hidden=(64, 64))
    config.selector.reward.price = 0.2  # where the dual ascent of a run from 0.1 was after 120 updates
    config.finetune.update(
        steps=1200, batch=64, label_smoothing=0.0, optimizer={**muon, "learning_rate": 5e-3, "warmup": 50}
    )
    config.compare = {
        "methods": ("mctf", "tome", "dynamicvit"),
        "shares": (0.45,),
        "finetune": {**config.finetune.to_dict(), "steps": 2400},
    }
    config.evaluation.batch = 250
    return config
