"""The command `profile`: tables of measured time."""

from __future__ import annotations

import argparse

from prance_jax.commands.common import AddCommand, open_config, open_workdir, renamed_choice
from prance_jax.core.errors import UserError

_DESCRIPTION = """\
Measures times on this device and writes them as a table.

--what buckets times every bucket of the selector's decisions, for --config.selector.latency_table with
--config.selector.reward.cost=latency. --what blocks times one layer by its number of tokens, and the
reduction or token predictor of each method of compare.methods, for --config.compare.latency_table."""


def add_commands(add_command: AddCommand) -> None:
    """Adds `profile`."""
    command = add_command(
        "profile",
        profile,
        "write a table of measured times of this device",
        _DESCRIPTION,
        "--config configs/digits_compare.py --what blocks --batch 250 --out blocks.json",
        workdir=False,
    )
    command.add_argument(
        "--what",
        type=renamed_choice("--what", {"plans": "buckets"}),
        choices=("buckets", "blocks"),
        default="buckets",
        help="what is timed; buckets by default",
    )
    command.add_argument(
        "--workdir", help="a trained workdir, for its buckets; without it buckets are spread evenly"
    )
    command.add_argument("--out", required=True, help="the file to write, such as latency.json")
    command.add_argument("--batch", type=int, default=16, help="images that run together; 16 by default")
    command.add_argument("--repeats", type=int, default=9, help="measurements of each time; 9 by default")


def profile(options: argparse.Namespace) -> int:
    """Measures every bucket, or one layer by its tokens, and writes the table."""
    if (options.workdir is None) == (options.config is None):
        raise UserError("profile: give a trained --workdir, or a --config for evenly spread buckets")
    return (_profile_blocks if options.what == "blocks" else _profile_buckets)(options)


def _profile_buckets(options: argparse.Namespace) -> int:
    import jax

    from prance_jax.adaptive.choose_buckets import even_buckets
    from prance_jax.benchmarks.profiles.buckets import measure_buckets
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
        config = open_config(options)
        spec = config.spec(placeholder_source(config.data), config.token_modes[0])
        buckets = even_buckets(spec, spec.space.first_group(config.model.first_group))
        params = forward.init_params(ViT(spec), jax.random.key(1))
    table = measure_buckets(buckets, params, hardware(), options.batch, options.repeats)
    table.save(options.out, write_atomic)
    print(f"dense {table.dense:.3f} ms an image; group 0 {table.first:.3f} ms")
    for group, (group_buckets, times) in enumerate(zip(buckets.groups, table.groups), start=1):
        for bucket, row in zip(group_buckets, times):
            milliseconds = ", ".join(f"{time:.3f}" for time in row)
            print(
                f"group {group}: widths {bucket.widths}, MLP sizes {bucket.mlp_dims}, "
                f"tokens {bucket.tokens}: {milliseconds} ms"
            )
    print(f"{options.out}: times per image in batches of {options.batch}, one per bucket of the group before")
    return 0


def _profile_blocks(options: argparse.Namespace) -> int:
    import jax

    from prance_jax.benchmarks.profiles.blocks import measure_blocks
    from prance_jax.core.files import write_atomic
    from prance_jax.data.load import placeholder_source
    from prance_jax.experiments.targets import measurable
    from prance_jax.models import forward
    from prance_jax.models.vit import ViT
    from prance_jax.results.table import hardware

    config = open_config(options) if options.workdir is None else open_workdir(options)[0]
    spec = config.spec(placeholder_source(config.data), config.token_modes[0])
    params = forward.init_params(ViT(spec), jax.random.key(1))  # weights do not change how fast a program is
    methods = measurable(spec, config.compare)
    table = measure_blocks(spec, params, methods, hardware(), options.batch, options.repeats)
    table.save(options.out, write_atomic)
    print(f"dense {table.dense:.4f} ms an image, {table.outside:.4f} of it outside of the layers")
    names = [name for name, _ in table.methods]
    print(" ".join(f"{head:>14}" for head in ("tokens", "attention", "MLP", *names)))
    for count, *times in zip(
        table.tokens, table.attention, table.mlp, *(times for _, times in table.methods)
    ):
        print(" ".join([f"{count:14}", *(f"{time:14.4f}" for time in times)]))
    print(
        f"{options.out}: milliseconds of one layer and one reduction, an image, in batches of {options.batch}"
    )
    return 0
