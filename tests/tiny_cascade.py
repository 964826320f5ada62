"""The smallest experiment with a cascade: two looks, the second of refined cells, an exit, one round; see `tiny_config`."""

from pathlib import Path
from runpy import run_path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = run_path(str(Path(__file__).parent / "tiny_config.py"))["get_config"]()
    config.name = "tiny_cascade"
    config.finetune.teacher = "dense_tuned"
    config.cascade = ConfigDict(
        {
            "looks": (
                {"image_size": 10, "structures": (1.0,), "begins": 1},
                {"structures": (1.0,), "exits": (0,), "refined": 0.5},
            ),
            "budgets": (0.5,),
            "methods": ("tome",),
            "peers": (
                {
                    "name": "cf_vit",
                    "looks": (
                        {"image_size": 10, "shares": "all", "structures": (1.0,), "begins": 1},
                        {"structures": (1.0,)},
                    ),
                },
            ),
            "selector": {
                "pool": 64,
                "held_out": 40,
                "updates": 20,
                "batch": 32,
                "hidden": (8,),
                "restarts": 2,
                "clone_steps": 5,
                "ppo": {"epochs": 1, "minibatches": 2},
            },
        }
    )
    return config
