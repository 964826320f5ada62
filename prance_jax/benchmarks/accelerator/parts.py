"""What is measured on an accelerator, in order of worth."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from prance_jax.adaptive.choose_buckets import even_buckets
from prance_jax.benchmarks import serving
from prance_jax.benchmarks.accelerator.checks import TOLERANCE, check
from prance_jax.benchmarks.accelerator.recipe import train_within
from prance_jax.benchmarks.accelerator.suite import Figures, Measurement, Part
from prance_jax.benchmarks.accelerator.throughput import measure_forward, measure_peak, measure_training
from prance_jax.benchmarks.cascade import measure_cascade
from prance_jax.benchmarks.dense import measure_dense
from prance_jax.benchmarks.input import measure_input
from prance_jax.benchmarks.rollout import measure_random_table, measure_rollout
from prance_jax.config.cascade import TableSelectorConfig
from prance_jax.config.experiment import Config
from prance_jax.config.stages import SelectorConfig
from prance_jax.data.noise import NoiseConfig, load_noise_source
from prance_jax.models.forward import init_params
from prance_jax.models.vit import ViT
from prance_jax.selector.environment import EnvParams
from prance_jax.selector.rl.types import PPOConfig
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES, SearchSpace
from prance_jax.training.stages.selector import Selector

_NETWORKS = ("tiny", "small", "base")
_IMAGENET = {"image_size": 224, "patch_size": 16, "num_classes": 1000}
_REHEARSAL = SearchSpace("rehearsal", 16, 2, 1, (8, 16), (1, 2), layers=(1, 1), head_dim=16)


@dataclass(frozen=True)
class SuiteConfig:
    """Sizes of the measurements.

    Attributes:
      networks: name -> network, smallest first; the first is also served adaptively.
      batches: images per call of serving.
      forward_batch: images per call of the dense network.
      train_batch: images per training step.
      chunks: shares of a batch that a chunk of the executor holds.
      peak_side: rows of the matrices for the device's peak.
      dtype: of the computation.
      repeats: measured calls.
      selector: sizes of stage two.
      config: trained, and its images read; None leaves both out.
      folder: for the workdir of the training.
    """

    networks: dict[str, ModelSpec]
    batches: tuple[int, ...]
    forward_batch: int
    train_batch: int
    chunks: tuple[int, ...]
    peak_side: int
    dtype: str
    repeats: int
    selector: TableSelectorConfig
    config: Config | None
    folder: Path


def full_suite(folder: Path, config: Config | None) -> SuiteConfig:
    """Returns the measurements of an accelerator: `tiny`, `small` and `base` at 224 pixels in bfloat16.

    Args:
      folder: for the workdir of the training.
      config: see `SuiteConfig`.
    """
    networks = {name: ModelSpec(SPACES[name], **_IMAGENET, dtype="bfloat16") for name in _NETWORKS}
    return SuiteConfig(
        networks=networks,
        batches=(1, 8, 64, 256, 1024),
        forward_batch=256,
        train_batch=128,
        chunks=(4, 8, 16),
        peak_side=8192,
        dtype="bfloat16",
        repeats=9,
        selector=TableSelectorConfig(),
        config=config,
        folder=folder,
    )


def rehearsal(folder: Path, config: Config | None) -> SuiteConfig:
    """Returns the same measurements of a tiny network in float32, which run on any machine in a minute.

    Args:
      folder: for the workdir of the training.
      config: see `SuiteConfig`.
    """
    spec = ModelSpec(_REHEARSAL, image_size=16, patch_size=4, num_classes=3)
    return SuiteConfig(
        networks={"rehearsal": spec},
        batches=(1, 4),
        forward_batch=4,
        train_batch=4,
        chunks=(2,),
        peak_side=64,
        dtype="float32",
        repeats=1,
        selector=TableSelectorConfig(pool=64, batch=16, updates=10, hidden=(8,)),
        config=config,
        folder=folder,
    )


def suite_parts(suite: SuiteConfig) -> list[Part]:
    """Returns all parts.

    Args:
      suite: sizes of the measurements.
    """
    parts = [
        Part("check", "Masked, compact and batched execution agree", 0.2, _checks(suite)),
        Part("dense", "Dense network: forward and training step", 0.2, _dense(suite)),
        Part("cascade", "Cascade of two looks, 30/40/30 % of the images stop at its answers", 0.15, _cascade(suite)),
        Part("serving", "Adaptive execution of PRANCE, ToMe and EViT at equal MACs", 0.15, _serving(suite)),
        Part("selector", "Decisions per second of the selector", 0.05, _selector(suite)),
    ]  # fmt: skip
    if suite.config is not None:
        title = f"Training of {suite.config.name}, as many steps as the time allows"
        parts += [
            Part("training", title, 0.2, _training(suite)),
            Part("input", "Images read from disk", 0.05, _input(suite)),
        ]
    return parts


def _checks(suite: SuiteConfig) -> Iterator[Measurement]:
    spec = next(iter(suite.networks.values()))
    for dtype in sorted(TOLERANCE, key=lambda dtype: dtype != suite.dtype):
        yield Measurement(dtype, lambda _, dtype=dtype: check(spec, dtype))


def _dense(suite: SuiteConfig) -> Iterator[Measurement]:
    peak = functools.cache(lambda: measure_peak(suite.dtype, suite.peak_side, suite.repeats))
    yield Measurement("peak", lambda _: peak())
    for name, spec in suite.networks.items():
        for title, measure, batch in (
            ("forward", measure_forward, suite.forward_batch),
            ("training step", measure_training, suite.train_batch),
        ):
            run = functools.partial(measure, spec, batch, suite.repeats)
            yield Measurement(f"{name} {title}", lambda _, run=run: run(peak()["tflops"]))
    if importlib.util.find_spec("torch") and importlib.util.find_spec("timm"):
        spec = ModelSpec(SPACES["deit_small"], **_IMAGENET, dtype=suite.dtype)
        batches = (min(suite.forward_batch, 256),)
        yield Measurement("deit_small against timm", lambda _: measure_dense(spec, batches, suite.repeats)[0])


def _cascade(suite: SuiteConfig) -> Iterator[Measurement]:
    name, spec = next(iter(suite.networks.items()))

    def measured(batch: int, share: int) -> Figures:
        row = measure_cascade(spec, batch, chunk=max(1, batch // share), repeats=suite.repeats)
        return dataclasses.asdict(row)

    for batch in suite.batches:
        for share in suite.chunks if batch > 1 else (1,):
            yield Measurement(
                f"{name} batch {batch}, chunk {max(1, batch // share)}",
                lambda _, batch=batch, share=share: measured(batch, share),
            )


def _serving(suite: SuiteConfig) -> Iterator[Measurement]:
    name, spec = next(iter(suite.networks.items()))
    buckets = even_buckets(spec, spec.largest.groups[0])
    params = functools.cache(lambda: init_params(ViT(spec), jax.random.key(0)))

    def measured(batch: int) -> Figures:
        rows = serving.measure_serving(
            buckets,
            params(),
            work=lambda size: serving.even_work(buckets, size),
            batches=(batch,),
            repeats=suite.repeats,
        )
        shares = {f"{row.method}_achieved": row.realised_share for row in rows}
        return {
            **shares,
            "macs_kept": next(row.macs_kept for row in rows if row.method == "adaptive"),
            "rows": [dataclasses.asdict(row) for row in rows],
        }

    for batch in suite.batches:
        yield Measurement(f"{name} batch {batch}", lambda _, batch=batch: measured(batch))


def _selector(suite: SuiteConfig) -> Iterator[Measurement]:
    spec, key = next(iter(suite.networks.values())), jax.random.key(0)

    def network(_: float) -> Figures:
        batch = suite.train_batch
        source = load_noise_source(NoiseConfig(spec.image_size, spec.channels, spec.num_classes, batch))
        ppo = PPOConfig(minibatches=1)
        selector = Selector(spec, SelectorConfig(batch=batch, ppo=ppo), spec.largest.groups[0])
        images, labels = source.sample_plain(source.tables, key, batch)
        teacher = jnp.zeros((batch, spec.num_classes), jnp.float32)
        env_params = EnvParams(init_params(ViT(spec), key), images, labels, teacher, jnp.float32(0))
        return measure_rollout(selector, env_params, key, min(3, suite.repeats))

    table = lambda _: measure_random_table(spec, suite.selector, suite.repeats)
    yield Measurement("decisions on a table", table)
    yield Measurement("decisions through the network", network)


def _training(suite: SuiteConfig) -> Iterator[Measurement]:
    run = lambda seconds: train_within(suite.config, seconds, suite.folder)
    yield Measurement(suite.config.name, run)


def _input(suite: SuiteConfig) -> Iterator[Measurement]:
    if suite.config.data.name in ("folder", "tfds"):
        yield Measurement(
            suite.config.name,
            lambda _: measure_input(
                suite.config, suite.config.meta.batch, batches=10, repeats=min(3, suite.repeats)
            ),
        )
