"""A network whose numbers of tokens have a gradient: how DiffRate learns them (Chen et al. 2023, arXiv 2305.17997, section 3).

Every layer has two distributions over numbers of tokens, for what pruning and for what merging leaves. The forward pass
uses their means, rounded up: it is `tokens.diffrate` with these counts, tokens being masked. Backwards a token's mask has
the gradient of the probability that so many tokens stay as its place by importance asks for (straight-through).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.complexity import TokenCounts, macs
from prance_jax.models.vit import ViT
from prance_jax.spec import ModelSpec
from prance_jax.tokens import initial_tokens
from prance_jax.tokens.merge import cosine
from prance_jax.tokens.tokenset import descending


class Counts(NamedTuple):
    """left: float32 [layers, 2], whole numbers of tokens after pruning and after merging, with the gradient of the means;
    CLS counted. chances: [layers, 2, N], the probability of each place by importance to stay."""

    left: jax.Array
    chances: jax.Array


def layers_of(spec: ModelSpec) -> range:
    """Where tokens are reduced: not in the first layer, nor in the last, where nobody reads the patches any more."""
    return range(1, spec.space.depth - (not spec.pixels))


def candidates(spec: ModelSpec, granularity: int) -> jax.Array:
    """Numbers of tokens to choose from, all of them first: float32 [K]."""
    return jnp.arange(spec.tokens, spec.fewest_tokens - 1, -granularity, dtype=jnp.float32)


def initial(spec: ModelSpec, granularity: int, left: tuple[int, ...]) -> jax.Array:
    """Logits [layers, 2, K] whose means are near a schedule, half of what goes being pruned. left: tokens after each layer of
    the network."""
    wanted, before = [], spec.tokens
    for layer in layers_of(spec):
        wanted.append(((before + left[layer]) / 2, left[layer]))
        before = left[layer]
    apart = candidates(spec, granularity) - jnp.asarray(wanted, jnp.float32)[..., None]
    return -jnp.square(apart) / (8.0 * granularity**2)


def counts_of(spec: ModelSpec, granularity: int, logits: jax.Array) -> Counts:
    """Of logits [layers, 2, K]; a layer never leaves more than come."""
    numbers = candidates(spec, granularity)
    chances = jax.nn.softmax(logits)
    means = chances @ numbers
    most, left = jnp.float32(spec.tokens), []
    for mean in means.reshape(-1):
        # Not above a whole number by rounding alone.
        whole = jnp.minimum(jnp.ceil(mean - 1e-3), jax.lax.stop_gradient(most))
        most = jax.lax.stop_gradient(whole) + mean - jax.lax.stop_gradient(mean)
        left.append(most)
    places = jnp.arange(spec.tokens)
    stays = jnp.sum(chances[..., None] * (numbers[:, None] > places), axis=2)
    return Counts(jnp.stack(left).reshape(means.shape), stays)


def share_of(spec: ModelSpec, counts: Counts) -> jax.Array:
    """Multiply-accumulates as a share of the network's own, with a gradient."""
    after, learned = [jnp.float32(spec.tokens)], iter(counts.left[:, 1])
    for layer in range(spec.space.depth):
        after.append(next(learned) if layer in layers_of(spec) else after[-1])
    fed = after[1:] if spec.pixels else [*after[1:-1], spec.class_tokens]
    spent = macs(spec, spec.largest, counts=TokenCounts(tuple(after[:-1]), tuple(fed))).total
    return spent / macs(spec, spec.largest).total


def run(model: ViT, params: Any, images: jax.Array, counts: Counts) -> jax.Array:
    """Logits [B, num_classes] of images [B, S, S, channels] under counts."""
    spec, rows = model.spec, {layer: row for row, layer in enumerate(layers_of(model.spec))}
    widths, hidden = spec.largest.widths, spec.largest.hidden

    def forward(model: ViT) -> jax.Array:
        tokens = initial_tokens(model.embed(images, widths[0]))
        there = jnp.ones(tokens.features.shape[:2])
        tokens = tokens._replace(size=there)
        for layer, block in enumerate(model.blocks):
            tokens, signals = block.attend(tokens, widths[layer], widths[layer], policy=there)
            if layer in rows:
                own = Counts(counts.left[rows[layer]], counts.chances[rows[layer]])
                features, size, there = _reduce(
                    tokens.features, tokens.size, there, signals.cls_attention, own
                )
                tokens = tokens._replace(features=features, size=size)
            tokens = block.feed(tokens, widths[layer], hidden[layer], widths[min(layer + 1, len(widths) - 1)])
        return model.verdict(tokens, widths[-1])

    return model.apply({"params": params}, method=forward)


def _reduce(
    x: jax.Array, size: jax.Array, there: jax.Array, attention: jax.Array, counts: Counts
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features [B, N, C], sizes and presence [B, N] after pruning and merging by attention from CLS. counts: of one layer."""
    importance = jnp.where(there > 0, attention, -1.0).at[:, 0].set(jnp.inf)
    place = descending(jax.lax.stop_gradient(importance))
    pruned, merged = (_mask(place, counts.left[step], counts.chances[step]) for step in (0, 1))
    kept = jax.lax.stop_gradient(counts.left[1])
    ends = (place >= jnp.minimum(1, kept - 1)) & (place < kept) & (there > 0)
    similarity = jnp.where(ends[:, None], cosine(x, x), -jnp.inf)
    goes = there * pruned * (1 - merged)
    moves = jax.nn.one_hot(similarity.argmax(axis=2), x.shape[1], axis=1) * goes[:, None]
    features = (x + moves @ x) / (1 + moves.sum(axis=2))[:, :, None]
    grown = size * jnp.maximum(similarity.max(axis=2), 0.0)
    return features, size + jnp.einsum("bmn,bn->bm", moves, grown), there * pruned * merged


def _mask(place: jax.Array, left: jax.Array, chances: jax.Array) -> jax.Array:
    """1 for the first `left` places, float32 [B, N], with the gradient of their chances [N]."""
    soft = chances[place]
    return (place < left).astype(jnp.float32) + soft - jax.lax.stop_gradient(soft)
