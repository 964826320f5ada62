"""The command `profile`: tables of measured time."""

from __future__ import annotations

import argparse

from prance_jax.commands.common import Command
from prance_jax.core.errors import UserError


def arguments(command: Command) -> None:
    """Adds `profile`."""
    sub = command(
        "profile",
        profile,
        "times every plan, or one layer by its tokens, on this device: for latency-aware rewards and targets",
        workdir=False,
    )
    sub.add_argument(
        "--what",
        choices=("plans", "blocks"),
        default="plans",
        help="plans: of PRANCE's decisions, for selector.latency_table; blocks: one layer by its tokens and the methods of "
        "compare.methods, for compare.latency_table",
    )
    sub.add_argument("--workdir", help="a trained workdir, for its plans; by default an even spread of plans")
    sub.add_argument("--out", required=True, help="the file, say latency.json")
    sub.add_argument("--batch", type=int, default=16, help="images that run together")
    sub.add_argument("--repeats", type=int, default=9)


def profile(options: argparse.Namespace) -> int:
    """Times every plan, or one layer by its tokens, on this device and writes the table."""
    if (options.workdir is None) == (options.config is None):
        raise UserError("profile: give a trained --workdir, or a --config for an even spread of plans")
    return (_profile_blocks if options.what == "blocks" else _profile_plans)(options)


def _profile_plans(options: argparse.Namespace) -> int:
    import jax

    from prance_jax.benchmarks.profiles.buckets import measure_buckets
    from prance_jax.benchmarks.serving import random_weights_buckets
    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.core.files import write_atomic
    from prance_jax.data.load import placeholder_source
    from prance_jax.models import forward
    from prance_jax.models.vit import ViT
    from prance_jax.results.table import hardware
    from prance_jax.serving.load import load

    if options.workdir is not None:
        model = load(options.workdir)
        buckets, params = model.buckets, model.params
    else:
        config = io.load_config(options.config, Config, options.overrides)
        spec = config.spec(placeholder_source(config.data), config.token_modes[0])
        buckets = random_weights_buckets(spec, spec.space.first_group(config.model.first_group))
        params = forward.init_params(ViT(spec), jax.random.key(1))
    table = measure_buckets(buckets, params, hardware(), options.batch, options.repeats)
    table.save(options.out, write_atomic)
    print(f"dense {table.dense:.3f} ms an image; group 0 {table.first:.3f} ms")
    for group, (own, times) in enumerate(zip(buckets.groups, table.groups), start=1):
        for bucket, row in zip(own, times):
            spans = ", ".join(f"{time:.3f}" for time in row)
            print(
                f"group {group}: widths {bucket.widths}, MLP sizes {bucket.mlp_dims}, tokens {bucket.tokens}: {spans} ms"
            )
    print(f"{options.out}: times per image in batches of {options.batch}, one per plan of the group before")
    return 0


def _profile_blocks(options: argparse.Namespace) -> int:
    import jax

    from prance_jax.benchmarks.profiles.blocks import measure_blocks
    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.core.files import write_atomic
    from prance_jax.data.load import placeholder_source
    from prance_jax.experiments.targets import measurable
    from prance_jax.models import forward
    from prance_jax.models.vit import ViT
    from prance_jax.results.table import hardware
    from prance_jax.training.workdir import Workdir

    if options.workdir is not None:
        config = Workdir(options.workdir).config()
    else:
        config = io.load_config(options.config, Config, options.overrides)
    spec = config.spec(placeholder_source(config.data), config.token_modes[0])
    params = forward.init_params(ViT(spec), jax.random.key(1))  # weights do not change how fast a program is
    methods = measurable(spec, config.compare)
    table = measure_blocks(spec, params, methods, hardware(), options.batch, options.repeats)
    table.save(options.out, write_atomic)
    print(f"dense {table.dense:.4f} ms an image, {table.outside:.4f} of it outside of the layers")
    names = [name for name, _ in table.methods]
    print(" ".join(f"{head:>14}" for head in ("tokens", "attention", "MLP", *names)))
    for count, *times in zip(table.tokens, table.attend, table.feed, *(own for _, own in table.methods)):
        print(" ".join([f"{count:14}", *(f"{time:14.4f}" for time in times)]))
    print(
        f"{options.out}: milliseconds of one layer and one reduction, an image, in batches of {options.batch}"
    )
    return 0
