"""CIFAR-10 (JPEG) for two CPU cores: a small network, few epochs, about an hour a seed.

Command:
  python -m prance_jax train --config configs/cifar10_cpu.py --config.data.folder.path=DIR
      --workdir runs/cifar10
  python -m prance_jax compare --workdir runs/cifar10
  DIR as in cifar10.py. With '--config.seeds=(0,1,2)' the first command adds the seeds that are
  missing. The second fine-tunes the dense network and three methods for as many steps.
Cost:
  78 minutes a seed on one core, with jemalloc and other work on the machine (two seeds at once,
  each on one core by `taskset -c 0` and `taskset -c 1`); 100 minutes on two cores of which other
  work took half.
Results:
  cifar10_cpu.md, three seeds: dense 72.5 %, PRANCE 72.2 to 73.2 % at 44 to 47 % of the MACs. The
  network sees the training set seven times. The accuracies are far from what CIFAR-10 allows; only
  differences have a meaning.

With the fine-tuned dense network as the teacher PRANCE equals that network:
--config.finetune.teacher=dense_tuned --config.finetune.steps=2400, in another workdir. Expected: 20
minutes more for the first token mode, 7 for each other.

The last line of each stage in the log:

    seed0/dense                 5000/5000  done in 20:18  loss 0.7234  accuracy 0.7492
    seed0/meta                  2400/2400  done in 25:50  loss 1.675   accuracy 0.7406  accuracy_random 0.7023
    seed0/prune/selector         150/150   done in 2:14   reward -0.04257  correct 0.7266  macs_kept 0.463
    seed0/prune/finetune        1200/1200  done in 10:01  loss 0.3823  accuracy 0.7445  macs_kept 0.4488
    seed0/merge/selector         150/150   done in 2:31   reward -0.02668  correct 0.7375  macs_kept 0.4521
    seed0/merge/finetune        1200/1200  done in 8:01   loss 0.3765  accuracy 0.7562  macs_kept 0.4516
    seed0/prune_merge/selector   150/150   done in 2:38   reward -0.03013  correct 0.7336  macs_kept 0.472
    seed0/prune_merge/finetune  1200/1200  done in 8:20   loss 0.3824  accuracy 0.7656  macs_kept 0.4829
    seed1/dense                 5000/5000  done in 15:02  loss 0.6929  accuracy 0.7492
    seed1/meta                  2400/2400  done in 22:44  loss 1.623   accuracy 0.7469  accuracy_random 0.7141
    seed1/prune/selector         150/150   done in 2:31   reward -0.03163  correct 0.7273  macs_kept 0.4284
    seed1/prune/finetune        1200/1200  done in 7:30   loss 0.3965  accuracy 0.7492  macs_kept 0.4266
    seed1/merge/selector         150/150   done in 2:49   reward -0.03118  correct 0.7199  macs_kept 0.4477
    seed1/merge/finetune        1200/1200  done in 6:27   loss 0.4052  accuracy 0.725   macs_kept 0.4505
    seed1/prune_merge/selector   150/150   done in 2:11   reward -0.03172  correct 0.7141  macs_kept 0.4753
    seed1/prune_merge/finetune  1200/1200  done in 6:24   loss 0.3875  accuracy 0.7523  macs_kept 0.463
    seed2/dense                 5000/5000  done in 15:16  loss 0.7025  accuracy 0.7461
    seed2/meta                  2400/2400  done in 22:36  loss 1.617   accuracy 0.7391  accuracy_random 0.7133
    seed2/prune/selector         150/150   done in 2:20   reward -0.04418  correct 0.7074  macs_kept 0.4508
    seed2/prune/finetune        1200/1200  done in 7:27   loss 0.3679  accuracy 0.7523  macs_kept 0.4556
    seed2/merge/selector         150/150   done in 2:45   reward -0.04733  correct 0.725   macs_kept 0.4661
    seed2/merge/finetune        1200/1200  done in 6:19   loss 0.3834  accuracy 0.743   macs_kept 0.4712
    seed2/prune_merge/selector   150/150   done in 2:10   reward -0.03346  correct 0.7266  macs_kept 0.4613
    seed2/prune_merge/finetune  1200/1200  done in 6:19   loss 0.3746  accuracy 0.7461  macs_kept 0.4601
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
        super_width=64, super_ratio=2.0, heads=4, head_dim=16,
        widths=(32, 40, 48, 56, 64), ratios=(1.0, 1.5, 2.0), layers=(1, 2, 2, 1),
    )  # fmt: skip
    config.dense.update(steps=5000, batch=64, label_smoothing=0.0, optimizer=muon)
    config.meta.update(steps=2400, batch=64, random_batch=64, label_smoothing=0.0, optimizer=muon)
    config.selector.update(updates=150, batch=256, pool=16384, hidden=(64, 64))
    config.selector.reward.cost_weight = 0.2  # a run that began at 0.1 was here after 120 updates
    config.finetune.update(
        steps=1200, batch=64, teacher="meta", label_smoothing=0.0,
        optimizer={**muon, "learning_rate": 5e-3, "warmup": 50},
    )  # fmt: skip
    config.compare = {
        "methods": ("mctf", "tome", "dynamicvit"),
        "shares": (0.45,),
        "finetune": {**config.finetune.to_dict(), "steps": 2400},
    }
    config.evaluation.batch = 250
    return config
