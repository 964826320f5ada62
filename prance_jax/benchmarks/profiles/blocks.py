"""Times one layer by token count on this device: the table behind targets in milliseconds."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import keep_most_likely
from prance_jax.baselines.token_predictor import TokenPredictor
from prance_jax.evaluation.timing import time_interleaved
from prance_jax.models.reduction import METHODS
from prance_jax.models.token_steps import LayerSizes, attend_and_reduce
from prance_jax.models.vit import ViT
from prance_jax.spec.block_latency import BlockLatency, network_name
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.token_counts import token_counts
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.token_set import TokenSet, initial_tokens

Tree = Any
_MAX_REDUCTIONS = 2  # in one program


def token_grid(spec: ModelSpec, steps: int = 6) -> tuple[int, ...]:
    """Returns token counts to measure: one, as in the last MLP, and even steps up to all.

    Args:
      spec: the network.
      steps: number of even steps.
    """
    even = (round(spec.tokens * step / steps) for step in range(1, steps + 1))
    return tuple(sorted({1, *(count for count in even if count)}))


def measure_blocks(
    spec: ModelSpec,
    params: Tree,
    methods: Sequence[str | PredictorConfig],
    device: str,
    batch: int = 16,
    repeats: int = 9,
    counts: Sequence[int] = (),
) -> BlockLatency:
    """Measures the block latencies of a network.

    Attention and MLP are timed separately, each through all layers at one token count, so that
    weights are read from memory as in use. All tokens attend, also in the last layer. The time of an
    empty call is subtracted. The time of a reduction that removes a quarter of the tokens is what it
    adds to the attention before it. A token predictor is timed together with the removal that
    follows it.

    Args:
      spec: the network.
      params: its parameters; their values do not matter.
      methods: training-free methods by name, and token predictors, of which only kind and heads
        matter.
      device: name of the machine in the table.
      batch: images that run together.
      repeats: interleaved repeats, of which medians are taken.
      counts: token counts to measure; by default `token_grid`.
    """
    counts, depth = tuple(counts) or token_grid(spec), spec.space.depth
    model, layers, reduced_layers = ViT(spec), range(depth), range(min(depth, _MAX_REDUCTIONS))
    images = jnp.ones((batch, *spec.image_shape), jnp.float32)
    programs: dict[Any, _Program] = {
        "dense": _Program(lambda p, x: model.apply({"params": p}, x, spec.largest), params, images),
        "call": _Program(lambda p, x: x.features.sum(axis=1), None, _state(spec, batch, 1)),
    }

    def through(part: Callable, count: int, part_layers: range) -> _Program:
        run = lambda p, tokens: model.apply({"params": p}, tokens, part_layers, method=part)
        return _Program(run, params, _state(spec, batch, count))

    for count in counts:
        programs["attention", count] = through(_attention, count, layers)
        programs["mlp", count] = through(_mlp, count, layers)
    for method in methods:
        for count in counts:
            arriving, tokens_after = _quarter(spec, method, count)
            if tokens_after == arriving:
                continue
            if isinstance(method, PredictorConfig):
                programs[method, count] = _predictors(
                    spec, method, batch, arriving, tokens_after, len(reduced_layers)
                )
            else:
                reduction = _reduction(METHODS[method], tokens_after)
                programs[method, count] = through(reduction, arriving, reduced_layers)
                programs.setdefault(("attention", arriving), through(_attention, arriving, layers))
    calls = {name: program.call() for name, program in programs.items()}
    seconds = time_interleaved(calls, repeats)
    times = {name: 1e3 * float(np.median(values)) / batch for name, values in seconds.items()}
    return _table(spec, times, counts, methods, device, batch)


class _Program(NamedTuple):
    """A function with its arguments, so that the compiler cannot fold them as constants."""

    run: Callable[[Tree, Any], Any]
    weights: Tree
    inputs: Any

    def call(self) -> Callable[[], Any]:
        compiled = jax.jit(self.run)
        return lambda: compiled(self.weights, self.inputs)


def _table(
    spec: ModelSpec,
    times: dict[Any, float],
    counts: tuple[int, ...],
    methods: Sequence[str | PredictorConfig],
    device: str,
    batch: int,
) -> BlockLatency:
    """The table from the milliseconds per image of each program."""
    depth, num_reductions = spec.space.depth, min(spec.space.depth, _MAX_REDUCTIONS)

    def each(program: Any, parts: int) -> float:
        return max(times[program] - times["call"], 0.0) / parts

    def reduction(method: str | PredictorConfig, count: int) -> float:
        if (method, count) not in times:
            return 0.0
        arriving, _ = _quarter(spec, method, count)
        before = 0.0 if isinstance(method, PredictorConfig) else each(("attention", arriving), depth)
        return max(each((method, count), num_reductions) - before, 0.0)

    attention, mlp = (tuple(each((part, count), depth) for count in counts) for part in ("attention", "mlp"))
    columns = tuple(
        (getattr(method, "name", method), tuple(reduction(method, count) for count in counts))
        for method in methods
    )
    table = BlockLatency(
        network_name(spec), counts, attention, mlp, times["dense"], 0.0, columns, device, batch
    )
    layers = table.milliseconds(token_counts(spec, spec.largest))
    return dataclasses.replace(table, outside=table.dense - layers)


def _quarter(spec: ModelSpec, method: str | PredictorConfig, count: int) -> tuple[int, int]:
    """Tokens before (`count`, or the next that the method allows) and after removing a quarter."""
    token_method = getattr(method, "method", None) or METHODS[method]
    extra_prefix_tokens = spec.extra_prefix_tokens
    if count <= spec.num_prefix_tokens + 1:
        return count, count
    arriving = token_method.feasible_count(
        count - extra_prefix_tokens, count - extra_prefix_tokens, spec.patches
    )
    return arriving + extra_prefix_tokens, token_method.feasible_count(
        arriving, round(0.75 * arriving), spec.patches
    ) + extra_prefix_tokens


def _state(spec: ModelSpec, batch: int, count: int) -> TokenSet:
    """Random tokens, so that sorting takes its usual time."""
    features = jax.random.normal(jax.random.key(count), (batch, count, spec.space.max_width), spec.dtype)
    return initial_tokens(features)._replace(token_of_patch=jnp.ones((batch, spec.patches), jnp.int32))


def _attention(model: ViT, tokens: TokenSet, layers: range) -> jax.Array:
    width = model.spec.space.max_width
    for layer in layers:
        tokens, _ = model.blocks[layer].apply_attention(tokens, width, width)
    return tokens.features


def _mlp(model: ViT, tokens: TokenSet, layers: range) -> jax.Array:
    width, mlp_dims = model.spec.space.max_width, model.spec.largest.mlp_dims
    for layer in layers:
        tokens = model.blocks[layer].apply_mlp(tokens, width, mlp_dims[layer], width)
    return tokens.features


def _reduction(method: TokenMethod, tokens_after: int) -> Callable:
    """Attention and a reduction in each layer; the next layer gets all tokens again."""

    def run(model: ViT, tokens: TokenSet, layers: range) -> tuple[jax.Array, jax.Array]:
        width, total = model.spec.space.max_width, jnp.float32(0)
        for layer in layers:
            tokens, reduced, _ = attend_and_reduce(
                model.spec, model.blocks[layer], tokens, LayerSizes(width, width, 0), method, (tokens_after,)
            )
            total += _read(reduced)
        return tokens.features, total

    return run


def _predictors(
    spec: ModelSpec, config: PredictorConfig, batch: int, arriving: int, tokens_after: int, number: int
) -> _Program:
    """Token predictors of different weights on the same tokens, each with its removal."""
    predictor, tokens = TokenPredictor(spec.space.max_width, config.heads), _state(spec, batch, arriving)
    is_kept = jnp.ones((batch, arriving - 1), jnp.float32)
    weights = jax.jit(jax.vmap(lambda key: predictor.init(key, tokens.features[:, 1:], is_kept)))(
        jax.random.split(jax.random.key(0), number)
    )

    def run(weights: Tree, inputs: tuple[TokenSet, jax.Array]) -> jax.Array:
        (tokens, is_kept), total = inputs, jnp.float32(0)
        for index in range(number):
            params = jax.tree.map(lambda leaf: leaf[index], weights)
            _, keep = predictor.apply(params, tokens.features[:, 1:], is_kept)
            total += _read(keep_most_likely(config, tokens, keep, tokens_after))
        return total

    return _Program(run, weights, (tokens, is_kept))


def _read(tokens: TokenSet) -> jax.Array:
    """A sum over all that later layers read, so that the compiler leaves nothing out."""
    total = tokens.features.sum(axis=1, dtype=jnp.float32)
    return total if tokens.size is None else total + tokens.size.sum(axis=1, keepdims=True)
