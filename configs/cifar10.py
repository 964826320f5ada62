"""CIFAR-10 (JPEG) for an accelerator: three token modes, three seeds, patches of 4 pixels.

Command:
  python -m prance_jax train --config configs/cifar10.py --config.data.folder.path=DIR --workdir runs/cifar10
  DIR holds train.zip and test.zip, or folders train/ and test/, with <split>/<class>/<name>.jpg.
  Patches of 2 pixels, 257 tokens: add --config.model.patch_size=2.
Cost:
  Expected, not measured: an hour or two on one accelerator.
Results:
  cifar10.md. Expected, not measured: dense 92 % or better. What two CPU cores can train is in
  cifar10_cpu.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    optimizer = {"name": "muon", "learning_rate": 1e-2, "warmup": 1000, "weight_decay": 0.05, "ema": 0.999}
    finetune = {
        "steps": 7500,
        "batch": 512,
        "teacher": "dense_tuned",
        "label_smoothing": 0.1,
        "optimizer": {**optimizer, "learning_rate": 5e-3, "warmup": 200},
    }
    return ConfigDict(
        {
            "name": "cifar10",
            "seeds": (0, 1, 2),
            "token_modes": ("prune", "merge", "prune_merge"),
            "data": {
                "name": "folder",
                "images": {
                    "size": 32,
                    "crop": 1.0,
                    "mean": (0.4914, 0.4822, 0.4465),
                    "std": (0.2470, 0.2435, 0.2616),
                },
                "augment": {
                    "crop": "pad",
                    "flip": True,
                    "rand_augment": 2,
                    "erase": 0.25,
                    "mixup": 0.2,
                    "cutmix": 1.0,
                },
            },
            "model": {
                "space": {
                    "preset": "nano",
                    "super_width": 256,
                    "super_ratio": 4.0,
                    "heads": 4,
                    "head_dim": 64,
                    "widths": (128, 160, 192, 224, 256),
                    "ratios": (1.0, 2.0, 3.0, 4.0),
                    "layers": (3, 3, 3, 3),
                },
                "patch_size": 4,
                "first_group": "max",
                "dtype": "bfloat16",
            },
            "dense": {"steps": 30000, "batch": 512, "label_smoothing": 0.1, "optimizer": optimizer},
            "meta": {
                # On CPU cores three to four points better than a start from scratch (cifar10_cpu.md).
                "init_from": "dense",
                "steps": 15000,
                "batch": 512,
                "random_batch": 512,
                "largest_alone": 0.0,
                "reduce_from": 0.1,
                "label_smoothing": 0.1,
                "optimizer": optimizer,
            },
            "selector": {
                "updates": 300,
                "batch": 1024,
                "pool": 32768,
                "state": "lean",
                "keep_choices": (0.2, 0.35, 0.5, 0.65, 0.8, 1.0),
                "reward": {
                    "quality": "agreement",
                    "agreement_floor": 0.5,
                    "marginal": True,
                    "keep_weight": 0.0,
                    "target_macs": 0.45,
                    "cost_weight": 0.1,
                    "cost_weight_rate": 0.2,
                },
                "ppo": {"actor_lr": 2e-3, "critic_lr": 3e-3, "epochs": 4, "gamma": 1.0, "entropy": 0.001},
            },
            "finetune": finetune,
            # Teaches stage three, fine-tuned as long. On CPU cores PRANCE then equals it (cifar10_cpu.md).
            "compare": {"finetune": {**finetune, "teacher": "meta"}},
            "evaluation": {"batch": 500},
        }
    )
