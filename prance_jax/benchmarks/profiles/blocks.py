"""Times one layer by token count on the device at hand: the table behind targets in milliseconds."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import keep_most_likely
from prance_jax.baselines.token_predictor import TokenPredictor
from prance_jax.core.timing import time_interleaved
from prance_jax.models.reduction import METHODS
from prance_jax.models.token_steps import LayerSizes, attend_and_reduce
from prance_jax.models.vit import ViT
from prance_jax.spec.block_latency import BlockLatency, network_name
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.token_set import TokenSet, initial_tokens

Tree = Any
_SITES = 2  # reductions in one program


def token_grid(spec: ModelSpec, steps: int = 6) -> tuple[int, ...]:
    """One token, which the last MLP sees, and even steps up to all of them."""
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
    """The table of a network at `counts` tokens, by default `token_grid`. device: how it names the machine.

    Attention and MLP run apart, each through all layers at one number of tokens, so that weights come from where they
    come from in use; what an empty call takes is subtracted. A reduction is what it adds to the attention before it, where a
    quarter of the tokens goes; a selector runs with the removal that follows it. Medians over interleaved repeats.
    methods: training-free ones by name, and learned selectors (of which only kind and heads matter).
    """
    counts, depth = tuple(counts) or token_grid(spec), spec.space.depth
    model, layers, sites = ViT(spec), range(depth), range(min(depth, _SITES))
    images = jnp.ones((batch, spec.image_size, spec.image_size, spec.channels))
    programs: dict[Any, _Program] = {
        "dense": _Program(lambda p, x: model.apply({"params": p}, x, spec.largest), params, images),
        "call": _Program(lambda p, x: x.features.sum(axis=1), None, _state(spec, batch, 1)),
    }

    def through(part: Callable, count: int, over: range) -> _Program:
        run = lambda p, tokens: model.apply({"params": p}, tokens, over, method=part)
        return _Program(run, params, _state(spec, batch, count))

    for count in counts:
        programs["attend", count] = through(_attend, count, layers)
        programs["feed", count] = through(_feed, count, layers)
    for method in methods:
        for count in counts:
            arriving, tokens_after = _quarter(spec, method, count)
            if tokens_after == arriving:
                continue
            if isinstance(method, PredictorConfig):
                programs[method, count] = _selectors(spec, method, batch, arriving, tokens_after, len(sites))
            else:
                programs[method, count] = through(_reducing(METHODS[method], tokens_after), arriving, sites)
                programs.setdefault(("attend", arriving), through(_attend, arriving, layers))
    calls = {name: program.call() for name, program in programs.items()}
    taken = time_interleaved(calls, repeats)
    times = {name: 1e3 * float(np.median(own)) / batch for name, own in taken.items()}
    return _table(spec, times, counts, methods, device, batch)


class _Program(NamedTuple):
    """Everything is an argument: what is known beforehand the compiler would compute itself."""

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
    """From the milliseconds of each program, an image."""
    depth, sites = spec.space.depth, min(spec.space.depth, _SITES)

    def each(program: Any, parts: int) -> float:
        return max(times[program] - times["call"], 0.0) / parts

    def reduction(method: str | PredictorConfig, count: int) -> float:
        if (method, count) not in times:
            return 0.0
        arriving, _ = _quarter(spec, method, count)
        before = 0.0 if isinstance(method, PredictorConfig) else each(("attend", arriving), depth)
        return max(each((method, count), sites) - before, 0.0)

    attend, feed = (tuple(each((part, count), depth) for count in counts) for part in ("attend", "feed"))
    outside = times["dense"] - depth * (attend[-1] + feed[-1])
    columns = tuple(
        (getattr(method, "name", method), tuple(reduction(method, count) for count in counts))
        for method in methods
    )
    return BlockLatency(
        network_name(spec), counts, attend, feed, times["dense"], outside, columns, device, batch
    )


def _quarter(spec: ModelSpec, method: str | PredictorConfig, count: int) -> tuple[int, int]:
    """Tokens that arrive, `count` or the next number that a method works on, and those left when a quarter goes."""
    own, extra_prefix_tokens = getattr(method, "method", None) or METHODS[method], spec.class_tokens - 1
    if count <= spec.class_tokens + 1:
        return count, count
    arriving = own.possible(count - extra_prefix_tokens, count - extra_prefix_tokens, spec.patches)
    return arriving + extra_prefix_tokens, own.possible(
        arriving, round(0.75 * arriving), spec.patches
    ) + extra_prefix_tokens


def _state(spec: ModelSpec, batch: int, count: int) -> TokenSet:
    """Random tokens, so that sorting has something to sort."""
    features = jax.random.normal(jax.random.key(count), (batch, count, spec.space.max_width), spec.dtype)
    return initial_tokens(features)._replace(token_of_patch=jnp.ones((batch, spec.patches), jnp.int32))


def _attend(model: ViT, tokens: TokenSet, layers: range) -> jax.Array:
    width = model.spec.space.max_width
    for layer in layers:
        tokens, _ = model.blocks[layer].apply_attention(tokens, width, width)
    return tokens.features


def _feed(model: ViT, tokens: TokenSet, layers: range) -> jax.Array:
    width, mlp_dims = model.spec.space.max_width, model.spec.largest.mlp_dims
    for layer in layers:
        tokens = model.blocks[layer].apply_mlp(tokens, width, mlp_dims[layer], width)
    return tokens.features


def _reducing(method: TokenMethod, tokens_after: int) -> Callable:
    """Attention and a reduction in each layer; what is left of the tokens is read and all of them go on."""

    def run(model: ViT, tokens: TokenSet, layers: range) -> tuple[jax.Array, jax.Array]:
        width, found = model.spec.space.max_width, jnp.float32(0)
        for layer in layers:
            tokens, fewer, _ = attend_and_reduce(
                model.spec, model.blocks[layer], tokens, LayerSizes(width, width, 0), method, (tokens_after,)
            )
            found += _read(fewer)
        return tokens.features, found

    return run


def _selectors(
    spec: ModelSpec, predictor: PredictorConfig, batch: int, arriving: int, tokens_after: int, sites: int
) -> _Program:
    """Selectors of different weights on the same tokens, each with its removal."""
    selector, tokens = TokenPredictor(spec.space.max_width, predictor.heads), _state(spec, batch, arriving)
    there = jnp.ones((batch, arriving - 1))
    weights = jax.jit(jax.vmap(lambda key: selector.init(key, tokens.features[:, 1:], there)))(
        jax.random.split(jax.random.key(0), sites)
    )

    def run(weights: Tree, inputs: tuple[TokenSet, jax.Array]) -> jax.Array:
        (tokens, there), found = inputs, jnp.float32(0)
        for site in range(sites):
            own = jax.tree.map(lambda leaf: leaf[site], weights)
            _, keep = selector.apply(own, tokens.features[:, 1:], there)
            found += _read(keep_most_likely(predictor, tokens, keep, tokens_after))
        return found

    return _Program(run, weights, (tokens, there))


def _read(tokens: TokenSet) -> jax.Array:
    """Something of all that later layers read, so that the compiler leaves nothing out."""
    found = tokens.features.sum(axis=1, dtype=jnp.float32)
    return found if tokens.size is None else found + tokens.size.sum(axis=1, keepdims=True)
