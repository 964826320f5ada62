"""A network whose numbers of tokens have a gradient: how DiffRate learns them (Chen et al. 2023, arXiv 2305.17997, section 3).

Every layer has two distributions over numbers of tokens, for what pruning and for what merging leaves. The forward pass
uses their means, rounded up: it is `tokens.diffrate` with these counts, tokens being masked. Backwards a token's mask has
the gradient of the probability that so many tokens stay as its place by importance asks for (straight-through).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.models.block import Block
from prance_jax.models.token_steps import LayerSizes, layer_sizes
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import TokenCounts, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.similarity import cosine_similarity
from prance_jax.tokens.token_set import TokenSet, descending, initial_tokens


class Counts(NamedTuple):
    """left: float32 [layers, 2], whole numbers of tokens after pruning and after merging, with the gradient of the means;
    CLS counted. chances: [layers, 2, N], the probability of each place by importance to stay."""

    tokens_after: jax.Array
    chances: jax.Array


@dataclass(frozen=True)
class LearnedCounts:
    """What is learned of a network: logits [layers, 2, K] of the numbers of tokens in its `layers`.

    granularity: tokens between the numbers to choose from. first: the first layer, from 0, that reduces tokens.
    """

    spec: ModelSpec
    granularity: int = 1
    first: int = 1

    @property
    def layers(self) -> range:
        """Where tokens are reduced: not in the last layer, where nobody reads the patches any more."""
        return range(self.first, self.spec.space.depth - (not self.spec.pixels))

    @property
    def numbers(self) -> jax.Array:
        """Numbers of tokens to choose from, all of them first: float32 [K]."""
        spec = self.spec
        return jnp.arange(spec.tokens, spec.fewest_tokens - 1, -self.granularity, dtype=jnp.float32)

    def near(self, tokens_after: tuple[int, ...]) -> jax.Array:
        """Logits whose means are near a schedule, half of what goes being pruned. left: tokens after each layer of the
        network."""
        wanted, before = [], self.spec.tokens
        for layer in self.layers:
            wanted.append(((before + tokens_after[layer]) / 2, tokens_after[layer]))
            before = tokens_after[layer]
        apart = self.numbers - jnp.asarray(wanted, jnp.float32)[..., None]
        return -jnp.square(apart) / (8.0 * self.granularity**2)

    def counts(self, logits: jax.Array) -> Counts:
        """The means of the distributions, rounded up; a layer never leaves more than come."""
        chances = jax.nn.softmax(logits)
        means = chances @ self.numbers
        most, tokens_after = jnp.float32(self.spec.tokens), []
        for mean in means.reshape(-1):
            # Not above a whole number by rounding alone.
            whole = jnp.minimum(jnp.ceil(mean - 1e-3), jax.lax.stop_gradient(most))
            most = jax.lax.stop_gradient(whole) + mean - jax.lax.stop_gradient(mean)
            tokens_after.append(most)
        places = jnp.arange(self.spec.tokens)
        stays = jnp.sum(chances[..., None] * (self.numbers[:, None] > places), axis=2)
        return Counts(jnp.stack(tokens_after).reshape(means.shape), stays)

    def share(self, counts: Counts) -> jax.Array:
        """Multiply-accumulates as a share of the network's own, with a gradient."""
        spec, after = self.spec, [jnp.float32(self.spec.tokens)]
        learned = dict(zip(self.layers, counts.tokens_after[:, 1]))
        for layer in range(spec.space.depth):
            after.append(learned.get(layer, after[-1]))
        fed = after[1:] if spec.pixels else [*after[1:-1], spec.class_tokens]
        spent = macs(spec, spec.largest, counts=TokenCounts(tuple(after[:-1]), tuple(fed))).total
        return spent / macs(spec, spec.largest).total

    def run(self, model: ViT, params: Any, images: jax.Array, counts: Counts) -> jax.Array:
        """Classifies images under given counts, tokens being masked.

        Args:
          model: the network.
          params: its parameters.
          images: float [B, S, S, channels].
          counts: tokens to keep in each of `layers`.

        Returns:
          Logits float32 [B, num_classes].
        """
        rows = {layer: row for row, layer in enumerate(self.layers)}
        sizes, layers = layer_sizes(self.spec.largest), range(self.spec.space.depth)

        def step(layer: int, block: Block, tokens: TokenSet, size: LayerSizes, is_kept: jax.Array) -> Any:
            tokens, signals = block.apply_attention(tokens, size.width_in, size.width, policy=is_kept)
            if layer in rows:
                row = Counts(counts.tokens_after[rows[layer]], counts.chances[rows[layer]])
                tokens, is_kept = _reduce(tokens, is_kept, signals.cls_attention, row)
            return tokens, signals, is_kept

        def forward(model: ViT) -> jax.Array:
            tokens = initial_tokens(model.embed(images, sizes[0].width_in))
            is_kept = jnp.ones(tokens.features.shape[:2])
            tokens = tokens._replace(size=is_kept)
            tokens, _, _ = model.forward_layers(tokens, layers, sizes, dict.fromkeys(layers, step), is_kept)
            return model.head_logits(model.apply_last_mlp(tokens, sizes[-1]), sizes[-1].width)

        return model.apply({"params": params}, method=forward)


def _reduce(
    tokens: TokenSet, is_kept: jax.Array, attention: jax.Array, counts: Counts
) -> tuple[TokenSet, jax.Array]:
    """Tokens, and which are there (float32 [B, N]), after pruning and merging by attention from CLS. counts: of one layer."""
    x, size = tokens.features, tokens.size
    importance = jnp.where(is_kept > 0, attention, -1.0).at[:, 0].set(jnp.inf)
    rank = descending(jax.lax.stop_gradient(importance))
    pruned, merged = (_mask(rank, counts.tokens_after[step], counts.chances[step]) for step in (0, 1))
    kept = jax.lax.stop_gradient(counts.tokens_after[1])
    ends = (rank >= jnp.minimum(1, kept - 1)) & (rank < kept) & (is_kept > 0)
    similarity = jnp.where(ends[:, None], cosine_similarity(x, x), -jnp.inf)
    goes = is_kept * pruned * (1 - merged)
    moves = jax.nn.one_hot(similarity.argmax(axis=2), x.shape[1], axis=1) * goes[:, None]
    features = (x + moves @ x) / (1 + moves.sum(axis=2))[:, :, None]
    grown = size * jnp.maximum(similarity.max(axis=2), 0.0)
    size = size + jnp.einsum("bmn,bn->bm", moves, grown)
    return tokens._replace(features=features, size=size), is_kept * pruned * merged


def _mask(rank: jax.Array, tokens_after: jax.Array, chances: jax.Array) -> jax.Array:
    """1 for the first `left` places, float32 [B, N], with the gradient of their chances [N]."""
    soft = chances[rank]
    return (rank < tokens_after).astype(jnp.float32) + soft - jax.lax.stop_gradient(soft)
