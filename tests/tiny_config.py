"""The smallest experiment that has every stage: two groups of one layer, six steps."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    optimizer = {"name": "adamw", "learning_rate": 1e-3, "warmup": 2}
    return ConfigDict(
        {
            "name": "tiny",
            "seeds": (0,),
            "token_modes": ("prune",),
            "data": {
                "digits": {
                    "canvas": 20,
                    "min_scale": 14.0,
                    "max_scale": 16.0,
                    "validation_images": 40,
                    "test_images": 50,
                }
            },
            "model": {
                "space": {
                    "super_width": 8,
                    "super_ratio": 2.0,
                    "heads": 1,
                    "head_dim": 8,
                    "widths": (4, 8),
                    "ratios": (1.0, 2.0),
                    "layers": (1, 1),
                },
                "patch_size": 5,
            },
            "dense": {"steps": 6, "batch": 8, "optimizer": optimizer},
            "meta": {"steps": 6, "batch": 8, "random_batch": 4, "optimizer": optimizer},
            "selector": {
                "updates": 4,
                "batch": 8,
                "pool": 16,
                "keep_choices": (0.5, 1.0),
                "hidden": (8,),
                "ppo": {"epochs": 2, "minibatches": 2},
                "reward": {"target_macs": 0.6},
            },
            "finetune": {"steps": 6, "batch": 8, "optimizer": optimizer},
            "compare": {
                "methods": ("cait", "spvit", "cait_cdcp", "mctf_consistent"),
                "shares": (0.7,),
                "finetune": {"steps": 2, "batch": 8, "optimizer": optimizer},
                "prune": {"every": 1, "multiple": (2, 2)},
            },
            "segment": {
                "train": {"steps": 2, "batch": 8, "optimizer": optimizer},
                "tune": {"steps": 2, "batch": 8, "optimizer": optimizer},
                "methods": ("cait",),
                "meta": {
                    "steps": 4,
                    "batch": 8,
                    "random_batch": 4,
                    "init_from": "dense",
                    "optimizer": optimizer,
                },
                "selector": {
                    "updates": 2,
                    "batch": 8,
                    "pool": 16,
                    "state": "lean",
                    "keep_choices": (0.5, 1.0),
                    "hidden": (8,),
                    "ppo": {"epochs": 2, "minibatches": 2},
                    "reward": {"quality": "agreement", "marginal": True, "keep_weight": 0.0},
                },
                "finetune": {"steps": 2, "batch": 8, "optimizer": optimizer},
            },
            "pit": {
                "patch_size": 5,
                "stride": 5,
                "dims": (8,),
                "heads": (1,),
                "depths": (1,),
                "share": 0.75,
                "train": {"steps": 2, "batch": 8, "optimizer": optimizer},
                "tune": {"steps": 2, "batch": 8, "optimizer": optimizer},
            },
            "validation": {"every": 4, "images": 30},
            "baselines": {"candidates": 6, "images": 20},
            "evaluation": {"batch": 32, "speed_seconds": 0.05, "buckets": 1, "calibration_images": 40},
        }
    )
