"""PRANCE as in the paper on the embedded cluttered digits, for two CPU cores: one seed, pruning.

Command:
  python -m prance_jax train --config configs/digits.py --workdir runs/digits
Cost:
  8 to 12 minutes on 2 quiet CPU cores, compilation included; 22 minutes on a slow, shared machine.
Results:
  digits.md. The run ends with a table of all methods, also in results.json and results.md.

Images have 28 x 28 pixels and patches 4 x 4, so there are 49 patches and CLS. The dense network
trains for as many steps as the meta-network and its fine-tuning together. Muon needs about half the
steps of AdamW here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    muon = {"name": "muon", "learning_rate": 1e-2, "warmup": 100}
    return ConfigDict(
        {
            "name": "digits",
            "seeds": (0,),
            "token_modes": ("prune",),
            "data": {
                "digits": {
                    "canvas": 28,
                    "grid": 4,
                    "min_scale": 14.0,
                    "max_scale": 17.0,
                    "min_crop": 2,
                    "max_crop": 3,
                    "clutter_ink": 0.5,
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
                    "layers": (1, 2, 2, 1),
                },
                "patch_size": 4,
                "first_group": "max",
            },
            "dense": {"steps": 3200, "batch": 32, "optimizer": muon},
            "meta": {
                "steps": 2400,
                "batch": 32,
                "random_batch": 24,
                "largest_alone": 0.4,
                "reduce_from": 0.5,
                "optimizer": muon,
            },
            "selector": {
                "updates": 220,
                "batch": 256,
                "pool": 24576,
                "hidden": (64, 64),
                "state": "lean",
                "keep_choices": (0.2, 0.35, 0.5, 0.65, 0.8, 1.0),
                # Agreement with the dense network, decision by decision: see selector/reward.py. The cost
                # weight follows the budget. The paper's reward: quality "correct", cost weight
                # 0.008 x MACs / 1e8, keep_weight 0.1.
                "reward": {
                    "quality": "agreement",
                    "agreement_floor": 0.5,
                    "marginal": True,
                    "keep_weight": 0.0,
                    "target_macs": 0.34,
                    "cost_weight": 0.1,
                    "cost_weight_rate": 0.2,
                },
                "ppo": {"actor_lr": 2e-3, "critic_lr": 3e-3, "epochs": 4, "gamma": 1.0, "entropy": 0.001},
            },
            # Afterwards: python -m prance_jax compare --workdir runs/digits; also segment and pit.
            "compare": {
                "shares": (0.35,),
                # In so few steps, the shares that predictors learn to keep must reach those of evaluation.
                "predictor": {"ratio": 50.0},
                # Six layers are few: without the first one the others would have to remove too many tokens.
                "counts": {"first": 0},
                # A hundred steps after a change are a point or two short; later steps regain them.
                "insertion": {"drop": 0.025},
                "finetune": {
                    "steps": 300,
                    "batch": 32,
                    "optimizer": {"name": "muon", "learning_rate": 2e-3, "warmup": 30},
                },
            },
            "segment": {
                "train": {"steps": 2000, "batch": 32, "optimizer": {**muon, "learning_rate": 5e-3}},
                "tune": {
                    "steps": 300,
                    "batch": 32,
                    "optimizer": {"name": "muon", "learning_rate": 1e-3, "warmup": 30},
                },
                # CLS is not trained to attend to what pixels need, so tokens are merged by similarity.
                "token_modes": ("tome",),
                "meta": {
                    "init_from": "dense",
                    "steps": 1200,
                    "batch": 32,
                    "random_batch": 16,
                    "reduce_from": 0.0,
                    "optimizer": {**muon, "learning_rate": 5e-3},
                },
                "selector": {
                    "updates": 250,
                    "batch": 256,
                    "pool": 4096,
                    "hidden": (64, 64),
                    "state": "lean",
                    "keep_choices": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
                    "reward": {
                        "quality": "agreement",
                        "agreement_floor": 0.5,
                        "marginal": True,
                        "keep_weight": 0.0,
                        "cost_weight": 0.025,
                        "cost_weight_rate": 0.6,
                    },
                    "ppo": {"actor_lr": 2e-3, "critic_lr": 3e-3, "epochs": 4, "gamma": 1.0, "entropy": 0.003},
                },
                "finetune": {
                    "steps": 600,
                    "batch": 32,
                    "optimizer": {"name": "muon", "learning_rate": 2e-3, "warmup": 50},
                },
            },
            # Three stages of 81, 25 and 9 patches.
            "pit": {
                "patch_size": 4,
                "stride": 3,
                "dims": (32, 64, 128),
                "heads": (2, 4, 8),
                "depths": (2, 4, 2),
                "mlp_ratio": 3.0,
                "share": 0.6,
                "predictor_blocks": (1, 0, 0),
                "train": {"steps": 2400, "batch": 32, "optimizer": muon},
                "tune": {
                    "steps": 500,
                    "batch": 32,
                    "optimizer": {"name": "muon", "learning_rate": 2e-3, "warmup": 50},
                },
                "predictor": {"ratio": 20.0},
            },
            "finetune": {
                "steps": 800,
                "batch": 64,
                "optimizer": {"name": "muon", "learning_rate": 5e-3, "warmup": 50},
            },
        }
    )
