"""Adaptivity on a harder embedded task: a cheap look on a coarse grid, then stop, or look again on the fine one.

Command:
  python -m prance_jax train --config configs/digits_cascade.py --workdir runs/digits_cascade
Cost:
  46 minutes a seed on one CPU core; two cores take one seed each.
Results:
  digits_cascade.md.

Images have 32 x 32 pixels and patches of 4 x 4, so that the coarse grid of 4 x 4 patches nests in the fine one of 8 x 8.
Digits are 10 to 20 pixels large, on clutter of ink 0.75. The task is the yardstick: see the page for what makes it one.
Every row has 9,000 steps in all.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    muon = {"name": "muon", "learning_rate": 5e-3, "warmup": 100}
    tune = {
        "steps": 2000,
        "batch": 64,
        "teacher": "dense_tuned",
        "optimizer": {"name": "muon", "learning_rate": 5e-3, "warmup": 50},
    }
    return ConfigDict(
        {
            "name": "digits_cascade",
            "seeds": (0,),
            "token_modes": ("prune",),
            "data": {
                "digits": {
                    "canvas": 32,
                    "min_scale": 10.0,
                    "max_scale": 20.0,
                    "min_crop": 2,
                    "max_crop": 4,
                    "clutter_ink": 0.75,
                    "validation_images": 4000,
                    "test_images": 10000,
                },
            },
            "model": {
                "space": {
                    "preset": "nano",
                    "super_width": 48,
                    "super_ratio": 3.0,
                    "heads": 3,
                    "head_dim": 16,
                    "widths": (24, 32, 40, 48),
                    "ratios": (1.0, 2.0, 3.0),
                    "layers": (2, 2, 2),
                },
                "patch_size": 4,
            },
            "dense": {"steps": 4000, "batch": 32, "optimizer": {**muon, "learning_rate": 1e-2}},
            "meta": {
                "steps": 3000,
                "batch": 32,
                "random_batch": 24,
                "init_from": "dense",
                "reduce_from": 0.0,
                "optimizer": muon,
            },
            "selector": {"keep_choices": (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)},
            "finetune": tune,
            # As many steps after `dense` as stages one and three have together.
            "compare": {"finetune": {**tune, "steps": 5000}},
            "baselines": {"candidates": 150},
            "evaluation": {"batch": 250, "speed_seconds": 8.0, "chunk": 25},
            "cascade": {
                "looks": (
                    {"image_size": 16, "structures": (0.13, 1.0), "begins": 2},
                    {"structures": (0.5, 1.0), "exits": (1,)},
                ),
                "budgets": (0.2, 0.33, 0.5),
                "selector": {"pool": 12288, "updates": 400},
            },
        }
    )
