"""PRANCE `small` on ImageNet (the size of DeiT-S), after the paper, with DeiT's augmentation.

Command:
  python -m prance_jax train --config configs/imagenet_small.py --config.data.folder.path=DIR
      --workdir runs/small
  python -m prance_jax compile --topology v5e:16x16 --config configs/imagenet_small.py    # needs no data
  DIR holds train/ and val/ with <class>/<name>.JPEG. From TensorFlow Datasets instead:
  --config.data.name=tfds --config.data.tfds.data_dir=DIR. On a pod: launch/tpu_pod.sh.
Cost:
  Expected, not measured: stage one, 300 epochs, about a day on 32 chips of TPU v5e; stages two and
  three, hours.
Results:
  imagenet_small.md. Training is not measured; the released checkpoints have 79.5 to 80 % top-1 at
  2.2 to 3 GMACs.
"""

from ml_collections import ConfigDict

IMAGES = 1_281_167
BATCH = 1024


def get_config(preset: str = "small") -> ConfigDict:
    epoch = IMAGES // BATCH
    adamw = {"learning_rate": 1e-3, "warmup": 5 * epoch, "weight_decay": 0.05, "beta2": 0.999, "ema": 0.9999}
    augment = {
        "crop": "resized",
        "flip": True,
        "rand_augment": 2,
        "erase": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    }
    return ConfigDict(
        {
            "name": f"imagenet_{preset}",
            "data": {
                "name": "folder",
                "folder": {"test": "val", "validation_share": 0.01},
                "tfds": {
                    "name": "imagenet2012",
                    "train": "train[:99%]",
                    "validation": "train[99%:]",
                    "test": "validation",
                },
                "images": {"in_memory": False, "size": 224},
                "noise": {"num_classes": 1000},
                "augment": augment,
            },
            "model": {
                "space": {"preset": preset},
                "patch_size": 16,
                "first_group": "max",
                "dtype": "bfloat16",
                "remat": True,
            },
            "dense": {
                "steps": 300 * epoch,
                "batch": BATCH,
                "label_smoothing": 0.1,
                "optimizer": adamw,
            },
            "meta": {
                "steps": 300 * epoch,
                "batch": BATCH,
                "random_batch": BATCH // 2,
                "largest_alone": 0.2,
                "label_smoothing": 0.1,
                "optimizer": adamw,
            },
            "selector": {
                "updates": 500,
                "batch": 1024,
                "pool": 16384,
                "state": "lean",
                "reward": {
                    "quality": "agreement",
                    "agreement_floor": 0.5,
                    "marginal": True,
                    "keep_weight": 0.0,
                    "target_macs": 0.5,
                    "cost_weight": 0.1,
                    "cost_weight_rate": 0.2,
                },
                "ppo": {"actor_lr": 2e-3, "critic_lr": 3e-3, "epochs": 4, "gamma": 1.0, "entropy": 0.001},
            },
            "finetune": {
                "steps": 30 * epoch,
                "batch": BATCH,
                "label_smoothing": 0.1,
                "optimizer": {**adamw, "learning_rate": 1e-4, "warmup": epoch},
            },
            "evaluation": {"batch": 1024},
            "checkpoint_seconds": 600.0,
        }
    )
