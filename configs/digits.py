"""PRANCE on the embedded cluttered digits: dense ViT, meta-network, selector and fine-tuning for one token mode.

Command:   bash launch/demo.sh
      or:  python -m prance_jax train --config configs/digits.py --workdir runs/digits
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    muon = {"name": "muon", "learning_rate": 1e-2, "warmup": 100}
    return ConfigDict({
        "name": "digits",
        "seeds": (0,),
        "token_modes": ("prune",),
        "data": {
            "digits": {
                "canvas": 28, "grid": 4, "min_scale": 14.0, "max_scale": 17.0, "min_crop": 2, "max_crop": 3,
                "clutter_ink": 0.7,
            },
        },
        "model": {
            "space": {
                "preset": "nano", "super_width": 48, "super_ratio": 3.0, "heads": 3, "head_dim": 16,
                "widths": (24, 32, 40, 48), "ratios": (1.0, 2.0, 3.0), "layers": (1, 2, 2, 1),
            },
            "patch_size": 4,
            "first_group": "max",
        },
        "dense": {"steps": 1800, "batch": 32, "optimizer": muon},
        "meta": {"steps": 2400, "batch": 32, "random_batch": 24, "optimizer": muon},
        "selector": {
            "updates": 100, "batch": 256, "pool": 4096,
            "keep_choices": (0.2, 0.35, 0.5, 0.65, 0.8, 1.0),
            "reward": {"quality": "probability", "target_macs": 0.46, "price": 0.3, "keep_weight": 0.05},
            "ppo": {"actor_lr": 1e-3, "critic_lr": 3e-3, "epochs": 4},
        },
        "finetune": {"steps": 600, "batch": 64, "optimizer": {"name": "muon", "learning_rate": 2e-3, "warmup": 50}},
    })
