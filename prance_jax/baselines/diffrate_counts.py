"""Token counts with a gradient: how DiffRate learns the schedule of a network.

Every layer has two distributions over token counts: after pruning and after merging. The forward
pass uses their means, rounded up. It is then the method `tokens.methods.diffrate` at these counts,
with masked tokens. In the backward pass the mask of a token of rank r has the gradient of the
probability that more than r tokens remain (straight-through).

Reference: DiffRate, Chen et al. 2023, arXiv 2305.17997, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.models.block import Block
from prance_jax.models.token_steps import LayerSizes, forward_layers, layer_sizes
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.token_counts import with_last_layer
from prance_jax.tokens.similarity import cosine_similarity
from prance_jax.tokens.token_set import TokenSet, descending_rank


class SoftCounts(NamedTuple):
    """Token counts after pruning and after merging, with a gradient.

    Attributes:
      tokens_after: float32 [layers, 2], whole numbers with the gradient of the means; CLS counted.
      keep_probs: float32 [layers, 2, N], probability that the token of each rank remains.
    """

    tokens_after: jax.Array
    keep_probs: jax.Array


@dataclass(frozen=True)
class LearnedCounts:
    """Learnable token counts of a network; their parameters are logits [layers, 2, choices].

    Attributes:
      spec: the network.
      granularity: distance of neighbouring choices, in tokens.
      first: the first layer, from 0, that reduces tokens.

    Raises:
      UserError: the network has no CLS, or has registers.
    """

    spec: ModelSpec
    granularity: int = 1
    first: int = 1

    def __post_init__(self):
        parts = self.spec.architecture
        if not parts.class_token or parts.reg_tokens:
            raise UserError(
                f"diffrate learns counts of tokens behind one CLS; class_token={parts.class_token} and "
                f"reg_tokens={parts.reg_tokens} must be True and 0"
            )

    @property
    def layers(self) -> range:
        """Layers that reduce tokens; not the last, after which a classifier reads no patches."""
        return range(self.first, self.spec.space.depth - (not self.spec.pixels))

    @property
    def count_choices(self) -> jax.Array:
        """Token counts to choose from, descending from all tokens, float32 [choices]."""
        spec = self.spec
        return jnp.arange(spec.tokens, spec.fewest_tokens - 1, -self.granularity, dtype=jnp.float32)

    def initial_logits(self, tokens_after: tuple[int, ...]) -> jax.Array:
        """Returns logits whose means are near a schedule.

        Half of the tokens that the schedule removes are pruned, half are merged.

        Args:
          tokens_after: tokens after each layer of the network.
        """
        targets, before = [], self.spec.tokens
        for layer in self.layers:
            targets.append(((before + tokens_after[layer]) / 2, tokens_after[layer]))
            before = tokens_after[layer]
        distance = self.count_choices - jnp.asarray(targets, jnp.float32)[..., None]
        return -jnp.square(distance) / (8.0 * self.granularity**2)

    def counts(self, logits: jax.Array) -> SoftCounts:
        """Returns the means of the distributions, rounded up and never rising from step to step."""
        probs = jax.nn.softmax(logits)
        means = probs @ self.count_choices
        before, tokens_after = jnp.float32(self.spec.tokens), []
        for mean in means.reshape(-1):
            # A mean that is above a whole number by rounding alone is not rounded up.
            whole = jnp.minimum(jnp.ceil(mean - 1e-3), jax.lax.stop_gradient(before))
            before = jax.lax.stop_gradient(whole) + mean - jax.lax.stop_gradient(mean)
            tokens_after.append(before)
        ranks = jnp.arange(self.spec.tokens, dtype=jnp.int32)
        keep_probs = jnp.sum(probs[..., None] * (self.count_choices[:, None] > ranks), axis=2)
        return SoftCounts(jnp.stack(tokens_after).reshape(means.shape), keep_probs)

    def macs_kept(self, counts: SoftCounts) -> jax.Array:
        """Computes the MACs under given counts over those of the dense network, with a gradient."""
        spec, after = self.spec, [jnp.float32(self.spec.tokens)]
        learned = dict(zip(self.layers, counts.tokens_after[:, 1]))
        for layer in range(spec.space.depth):
            after.append(learned.get(layer, after[-1]))
        token_counts = with_last_layer(spec, tuple(after[:-1]), tuple(after[1:]))
        return macs(spec, spec.largest, counts=token_counts).total / macs(spec, spec.largest).total

    def forward(self, model: ViT, params: Any, images: jax.Array, counts: SoftCounts) -> jax.Array:
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
            num_queries = self.spec.num_queries(layer)
            tokens, signals = block.apply_attention(
                tokens, size.width_in, size.width, policy=is_kept, num_queries=num_queries
            )
            if layer in rows:
                row = SoftCounts(counts.tokens_after[rows[layer]], counts.keep_probs[rows[layer]])
                tokens, is_kept = _reduce(tokens, is_kept, signals.cls_attention, row)
            return tokens, signals, is_kept

        def classify(model: ViT) -> jax.Array:
            tokens = model.initial_tokens(images, sizes[0].width_in)
            is_kept = jnp.ones(tokens.features.shape[:2], jnp.float32)
            tokens = tokens._replace(size=is_kept)
            tokens, _, _ = forward_layers(
                model.blocks, tokens, layers, sizes, dict.fromkeys(layers, step), is_kept
            )
            return model.head_logits(model.apply_last_mlp(tokens, sizes[-1]), sizes[-1].width)

        return model.apply({"params": params}, method=classify)


def _reduce(
    tokens: TokenSet, is_kept: jax.Array, attention: jax.Array, counts: SoftCounts
) -> tuple[TokenSet, jax.Array]:
    """Prunes and merges tokens by the attention from CLS; also which remain, float32 [B, N]."""
    x, size = tokens.features, tokens.size
    importance = jnp.where(is_kept > 0, attention, -1.0).at[:, 0].set(jnp.inf)
    rank = descending_rank(jax.lax.stop_gradient(importance))
    after_pruning, after_merging = (
        _first_tokens(rank, counts.tokens_after[step], counts.keep_probs[step]) for step in (0, 1)
    )
    num_keep = jax.lax.stop_gradient(counts.tokens_after[1])
    is_target = (rank >= jnp.minimum(1, num_keep - 1)) & (rank < num_keep) & (is_kept > 0)
    similarity = jnp.where(is_target[:, None], cosine_similarity(x, x), -jnp.inf)
    is_merged = is_kept * after_pruning * (1 - after_merging)
    moves = (
        jax.nn.one_hot(similarity.argmax(axis=2), x.shape[1], dtype=jnp.float32, axis=1) * is_merged[:, None]
    )
    features = (x + moves @ x) / (1 + moves.sum(axis=2))[:, :, None]
    added_size = size * jnp.maximum(similarity.max(axis=2), 0.0)
    size = size + jnp.einsum("bmn,bn->bm", moves, added_size)
    return tokens._replace(features=features, size=size), is_kept * after_pruning * after_merging


def _first_tokens(rank: jax.Array, num_keep: jax.Array, keep_probs: jax.Array) -> jax.Array:
    """1 for the first tokens by rank, float32 [B, N], with the gradient of `keep_probs` [N]."""
    soft = keep_probs[rank]
    return (rank < num_keep).astype(jnp.float32) + soft - jax.lax.stop_gradient(soft)
