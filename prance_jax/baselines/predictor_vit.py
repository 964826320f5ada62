"""Learned token selectors: SPViT (Kong et al. 2022, arXiv 2112.13890) and DynamicViT (Rao et al. 2021, arXiv 2106.02034).

A small network before some layers says of every token whether it stays. Training keeps all tokens and masks (`train`),
so the decisions have a gradient; evaluation removes them (`__call__`), the same tokens by the same scores, and draws
nothing. What is dropped goes into one package token (SPViT) or nowhere (DynamicViT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.models.block import norm
from prance_jax.models.vit import ViT
from prance_jax.spec.block_latency import BlockLatency, OutOfReach, first_within
from prance_jax.spec.macs import Macs, TokenCounts, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import Size
from prance_jax.tokens.counts import nothing_goes
from prance_jax.tokens.methods.registry import METHODS, TokenMethod
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, initial_tokens


@dataclass(frozen=True)
class Selective:
    """What is selected where. Hashable: it selects a compiled program.

    package: what is dropped goes into a package token (SPViT); else it is gone (DynamicViT). sites: layers, from 0,
    before which a selector stands. kept: share of the original patches that stays at each, never rising. heads: of the
    selectors; 1 is DynamicViT's, which has no branch of head importance. by_threshold: evaluation keeps the tokens that
    are more likely to be kept than not, so every image has a number of its own; else the best `kept` of each.
    """

    package: bool
    sites: tuple[int, ...]
    kept: tuple[float, ...]
    heads: int = 1
    by_threshold: bool = False

    def __post_init__(self):
        if len(self.sites) != len(self.kept) or list(self.sites) != sorted(set(self.sites)):
            raise UserError(
                f"selective: sites={self.sites} must rise, with a share of kept={self.kept} for each"
            )
        if list(self.kept) != sorted(self.kept, reverse=True) or not all(
            0 < share <= 1 for share in self.kept
        ):
            raise UserError(f"selective: kept={self.kept} must be shares above 0 and up to 1 that never rise")

    @property
    def method(self) -> TokenMethod:
        """What removes the tokens."""
        return METHODS["package" if self.package else "prune"]

    @property
    def name(self) -> str:
        """By which tables of latencies know a selector: 'spvit_H' with H heads, or 'dynamicvit_1'."""
        return f"{'spvit' if self.package else 'dynamicvit'}_{self.heads}"

    def left(self, spec: ModelSpec) -> tuple[int, ...]:
        """Tokens (CLS and the package counted) in each layer at the shares of `kept`."""
        count, counts, dropped = spec.tokens, [], False
        for layer in range(spec.space.depth):
            if layer in self.sites:
                wanted = max(1, round(self.kept[self.sites.index(layer)] * spec.patches))
                dropped |= wanted < spec.patches
                count = min(count, 1 + wanted + (self.package and dropped))
            counts.append(count)
        return tuple(counts)

    def macs(self, spec: ModelSpec, left: tuple[Size, ...] | None = None) -> Macs:
        """Multiply-accumulates of one image, selectors included, with CLS alone in the last MLP. left: tokens in each
        layer, ints or int32 [B]; by default those at the shares of `kept`."""
        left = left or self.left(spec)
        counts = TokenCounts(left, (*left[:-1], 1))
        before = (spec.tokens, *left)
        width = spec.space.widest
        selectors = sum(selector_macs(before[site] - 1, width, self.heads) for site in self.sites)
        return macs(spec, spec.largest, counts=counts)._replace(selector=selectors)

    def milliseconds(self, spec: ModelSpec, table: BlockLatency) -> float:
        """Of one image at the shares of `kept`, by a measured table, selectors included."""
        left = self.left(spec)
        before = (spec.tokens, *left)
        counts = TokenCounts(left, (*left[:-1], 1))
        return table.milliseconds(counts, self.name, tuple(before[site] for site in self.sites))


def selector_macs(tokens: int, width: int, heads: int) -> int:
    """Of one selector on so many tokens: per head d -> d, d -> d/2 -> d/4 -> 2, d = width / heads; head importance."""
    inner = width // heads
    each = inner * inner + inner * (inner // 2) + (inner // 2) * (inner // 4) + (inner // 4) * 2
    return tokens * (heads * each + (2 * heads * (heads // 2) if heads > 1 else 0))


class TokenSelector(nn.Module):
    """Log-probabilities (keep, drop) of every token, from itself and the mean of those that are still there.

    Every head has weights of its own (in SPViT's public code all share one set by mistake).
    """

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: [B, N, C] without CLS; there: float32 [B, N]. Returns log-probabilities for drawing, float32 [B, N, 2], and
        the probability to be kept, float32 [B, N]; heads are averaged by their importance, in logarithms for the first
        and plainly for the second (section 3.2)."""
        heads, inner = self.heads, self.width // self.heads
        x = x.astype(jnp.float32).reshape(*x.shape[:2], heads, inner)

        def affine(name: str, x: jax.Array, outputs: int) -> jax.Array:
            # One matrix per head is drawn as one: lecun_normal would count the heads as inputs.
            init = nn.initializers.lecun_normal(batch_axis=(0,))
            kernel = self.param(f"{name}_kernel", init, (heads, x.shape[-1], outputs))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (heads, outputs))
            return jnp.einsum("bnhi,hio->bnho", x, kernel) + bias

        scale = self.param("norm_scale", nn.initializers.ones, (heads, inner))
        shift = self.param("norm_bias", nn.initializers.zeros, (heads, inner))
        normed = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        z = nn.gelu(affine("embed", normed * scale + shift, inner), approximate=False)
        local, spread = z[..., : inner // 2], z[..., inner // 2 :]
        weight = there[:, :, None, None]
        mean = jnp.sum(spread * weight, 1, keepdims=True) / jnp.maximum(
            jnp.sum(weight, 1, keepdims=True), 1.0
        )
        z = jnp.concatenate([local, jnp.broadcast_to(mean, spread.shape)], axis=-1)
        z = nn.gelu(affine("first", z, inner // 2), approximate=False)
        z = nn.gelu(affine("second", z, inner // 4), approximate=False)
        logits = affine("decide", z, 2)
        if heads == 1:
            chances = jax.nn.log_softmax(logits[:, :, 0])
            return chances, jnp.exp(chances[..., 0])
        importance = nn.Dense(max(heads // 2, 1), name="squeeze")(x.mean(-1))
        importance = nn.sigmoid(nn.Dense(heads, name="excite")(nn.gelu(importance, approximate=False)))
        importance = (importance / importance.sum(-1, keepdims=True))[..., None]
        chances = jnp.sum(importance * jax.nn.log_softmax(logits), axis=2)
        keep = jnp.sum(importance * jax.nn.softmax(logits), axis=2)[..., 0]
        return chances, keep


class Chosen(NamedTuple):
    """keep: [B, N - 1], the probability of every token but CLS to be kept. left: tokens that stay, an int or int32 [B], CLS and
    the package counted. drops: bool [B], which images drop something; None where `left` tells."""

    keep: jax.Array
    left: Size
    drops: jax.Array | None


class Selected(NamedTuple):
    """logits [B, K]; the last tokens; left: tokens in each layer, ints or int32 [B]."""

    logits: jax.Array
    tokens: TokenSet
    left: tuple[Size, ...]


class Trained(NamedTuple):
    """logits [B, K]; kept: [B, sites], share of the patches that stay, with gradient; features: [B, P, C], the last
    layer's patches after the final norm; there: [B, P], which of them are left."""

    logits: jax.Array
    kept: jax.Array
    features: jax.Array
    there: jax.Array


class SelectiveViT(nn.Module):
    """A ViT (its largest structure) with selectors. Parameters: 'vit' as of `ViT`, 'selector_I' per site."""

    spec: ModelSpec
    selective: Selective

    def setup(self):
        if self.spec.distilled:
            raise UserError("learned selectors know one class token here; a distilled network has two")
        if self.spec.pixels:
            raise UserError(
                "learned selectors keep what the class token needs; with pixels=True use a token method"
            )
        self.vit = ViT(self.spec)
        self.selectors = [
            TokenSelector(self.spec.space.widest, self.selective.heads, name=f"selector_{site}")
            for site in self.selective.sites
        ]

    def __call__(self, images: jax.Array) -> Selected:
        """Tokens are removed; or masked, where every image has a number of its own."""
        tokens = self.begin(images)
        seen = [tokens.count] * self._ends[0]
        for index, (first, end) in enumerate(zip(self._ends, self._ends[1:])):
            tokens = self.advance(tokens, self.choose(tokens, index), index)
            seen += [tokens.count] * (end - first)
        return Selected(self.finish(tokens), tokens, tuple(seen))

    def begin(self, images: jax.Array) -> TokenSet:
        """Embedding, and the layers before the first selector."""
        return self._layers(
            initial_tokens(self.vit.embed(images, self.spec.largest.widths[0])), 0, self._ends[0]
        )

    def choose(self, tokens: TokenSet, index: int) -> Chosen:
        """What selector `index` (0, 1, ...) says of the tokens that arrive at it."""
        selective, spec = self.selective, self.spec
        there = jnp.ones(tokens.features.shape[:2]) if tokens.valid is None else tokens.valid
        _, keep = self.selectors[index](tokens.features[:, 1:], there[:, 1:].astype(jnp.float32))
        if not selective.by_threshold:
            return Chosen(keep, selective.left(spec)[selective.sites[index]], None)
        left, drops = self._number(tokens, keep)
        return Chosen(keep, selective.method.possible(tokens.count, left, spec.patches), drops)

    def advance(self, tokens: TokenSet, chosen: Chosen, index: int) -> TokenSet:
        """Removes what selector `index` chose, and runs the layers up to the next one; the last layer up to its MLP."""
        if not nothing_goes(tokens, chosen.left):
            drops = [chosen.drops] if self.selective.package and chosen.drops is not None else []
            tokens = remove(self.selective, tokens, chosen.keep, chosen.left, *drops)
        return self._layers(tokens, *self._ends[index : index + 2])

    def finish(self, tokens: TokenSet) -> jax.Array:
        """Logits [B, K]: the last MLP, for CLS alone, and the classifier."""
        width, hidden = self.spec.largest.widths[-1], self.spec.largest.hidden[-1]
        read = tokens._replace(features=tokens.features[:, :1])
        fed = self.vit.blocks[-1].feed(read, width, hidden, width)
        return self.vit.classify(fed.features, width)[:, 0]

    @property
    def _ends(self) -> tuple[int, ...]:
        """The layers where each part of the network ends: at every selector, and behind the last layer."""
        return (*self.selective.sites, self.spec.space.depth)

    def _layers(self, tokens: TokenSet, first: int, end: int) -> TokenSet:
        """Layers from `first` up to `end`; of the last layer of all only the attention."""
        widths, hidden = self.spec.largest.widths, self.spec.largest.hidden
        for layer in range(first, end):
            block = self.vit.blocks[layer]
            tokens, _ = block.attend(tokens, widths[layer], widths[layer])
            if layer + 1 < len(widths):
                tokens = block.feed(tokens, widths[layer], hidden[layer], widths[layer + 1])
        return tokens

    def _number(self, tokens: TokenSet, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens left, int32 [B], when those stay that are more likely to stay than not; and whether any goes."""
        count = jnp.broadcast_to(tokens.count, keep.shape[:1])
        place = jnp.arange(1, keep.shape[1] + 1)
        patch = place < count[:, None]
        packed = jnp.zeros(keep.shape[:1], bool) if tokens.package is None else tokens.package > 0
        patch &= ~(packed[:, None] & (place == count[:, None] - 1))
        kept = jnp.sum(patch & (keep > 0.5), axis=1, dtype=jnp.int32)
        drops = kept < patch.sum(axis=1)
        return 1 + kept + (drops | packed) * self.selective.package, drops

    def train(self, images: jax.Array, key: jax.Array) -> Trained:
        """All tokens, those dropped masked; decisions drawn (Gumbel-softmax, straight-through)."""
        selective, spec = self.selective, self.spec
        widths, hidden = spec.largest.widths, spec.largest.hidden
        x = self.vit.embed(images, widths[0])
        batch, patches = x.shape[0], spec.patches
        there, gathered, shares = jnp.ones((batch, patches)), jnp.zeros(batch), []
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))  # the place of the package
        for layer, block in enumerate(self.vit.blocks):
            if layer in selective.sites:
                index = selective.sites.index(layer)
                seen = jnp.concatenate([there, self._packed(gathered)], axis=1)
                chances, keep = self.selectors[index](x[:, 1:], seen)
                kept = draw(chances[:, :-1], jax.random.fold_in(key, index)) * there
                if selective.package:
                    weights = keep[:, :-1] * (there - kept)
                    total = gathered + weights.sum(axis=1)
                    package = gathered[:, None] * x[:, -1] + jnp.einsum("bn,bnc->bc", weights, x[:, 1:-1])
                    package = package / jnp.where(total > 0, total, 1.0)[:, None]
                    x, gathered = jnp.concatenate([x[:, :-1], package[:, None].astype(x.dtype)], 1), total
                there = kept
                shares.append(there.mean(axis=1))
            policy = jnp.concatenate([jnp.ones((batch, 1)), there, self._packed(gathered)], axis=1)
            tokens, _ = block.attend(initial_tokens(x), widths[layer], widths[layer], policy=policy)
            following = widths[min(layer + 1, len(widths) - 1)]
            x = block.feed(tokens, widths[layer], hidden[layer], following).features
        logits = self.vit.classify(x[:, :1], widths[-1])[:, 0]
        features = norm(spec, self.vit.norm, x[:, 1:-1], widths[-1], widths[-1])
        return Trained(logits, jnp.stack(shares, axis=1), features, there)

    def features(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and final-norm patches [B, P, C] of the network without selection: what a teacher gives."""
        widths, hidden = self.spec.largest.widths, self.spec.largest.hidden
        tokens = initial_tokens(self.vit.embed(images, widths[0]))
        for layer, block in enumerate(self.vit.blocks):
            tokens, _ = block.attend(tokens, widths[layer], widths[layer])
            following = widths[min(layer + 1, len(widths) - 1)]
            tokens = block.feed(tokens, widths[layer], hidden[layer], following)
        patches = norm(self.spec, self.vit.norm, tokens.features[:, 1:], widths[-1], widths[-1])
        return self.vit.classify(tokens.features[:, :1], widths[-1])[:, 0], patches

    def _packed(self, gathered: jax.Array) -> jax.Array:
        """Whether there is a package, float32 [B, 1]."""
        return jax.lax.stop_gradient((gathered > 0).astype(jnp.float32))[:, None]


def remove(
    selective: Selective, tokens: TokenSet, keep: jax.Array, left: Size, *drops: jax.Array
) -> TokenSet:
    """`left` tokens: those most likely to be kept, and what the others leave. keep: [B, N - 1], without CLS. drops: see
    `tokens.package`."""
    # The reductions read scores where they otherwise read the attention from CLS; it ranks first anyway.
    scores = AttentionSignals(*[jnp.pad(keep, ((0, 0), (1, 0)), constant_values=1.0)] * 3)
    return selective.method.reduce(tokens, scores, left, *drops)


def draw(chances: jax.Array, key: jax.Array) -> jax.Array:
    """1 where a token is kept, float32 [B, N]; its gradient is that of the softmax at temperature 1."""
    soft = jax.nn.softmax(chances + jax.random.gumbel(key, chances.shape))[..., 0]
    hard = (soft > 0.5).astype(jnp.float32)
    # In brackets: the difference is exactly zero, so that nothing is dropped by a rounding error.
    return hard + (soft - jax.lax.stop_gradient(soft))


def at_share(
    spec: ModelSpec, package: bool, share: float, heads: int = 1, by_threshold: bool = False
) -> Selective:
    """Of `selections` the one whose multiply-accumulates come nearest to `share` of the full network's."""
    target = share * macs(spec, spec.largest).total
    own = selections(spec, package, heads, by_threshold)
    return min(reversed(own), key=lambda choice: abs(choice.macs(spec).total - target))


def at_latency(
    spec: ModelSpec,
    package: bool,
    target: float,
    table: BlockLatency,
    heads: int = 1,
    by_threshold: bool = False,
) -> Selective:
    """Of `selections` the one that keeps the most of those whose time by a measured table is at most `target`
    milliseconds an image: SPViT's way from a budget of latency to kept shares. Raises OutOfReach, a UserError, where none
    is so fast."""
    own = selections(spec, package, heads, by_threshold)
    try:
        return first_within(target, own, lambda choice: choice.milliseconds(spec, table), table)
    except OutOfReach as error:
        raise OutOfReach(f"{own[0].name}: {error}") from None


def selections(spec: ModelSpec, package: bool, heads: int = 1, by_threshold: bool = False) -> list[Selective]:
    """Selectors after a quarter, half and three quarters of the layers that keep rho, rho^2 and rho^3 of the patches, for
    rho from 1 down in steps of 0.01."""
    depth = spec.space.depth
    sites = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))

    def choice(rho: float) -> Selective:
        kept = tuple(rho ** (i + 1) for i in range(len(sites)))
        return Selective(package, sites, kept, heads, by_threshold)

    return [choice(percent / 100) for percent in range(100, 0, -1)]
