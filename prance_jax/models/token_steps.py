"""The one loop over layers, and the token steps that it calls.

`forward_layers` calls a token step in each layer, which applies the layer's attention and whatever reduces tokens there:
nothing (`attention_only`), a scheduled reduction (`scheduled_step`), or the reduction of a decision (`decision_step`).
Networks of other methods bring steps of their own: token predictors (`baselines.predictor_vit`) and learned token counts
(`baselines.diffrate_counts`).
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, NamedTuple, Sequence

from prance_jax.core.sizes import Size
from prance_jax.models.block import Block
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure
from prance_jax.tokens.counts import removes_nothing, shift_size
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.prefix import join_prefix, prefix_groups, split_prefix
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


class LayerSizes(NamedTuple):
    """Sizes of one layer.

    Attributes:
      width_in: channels at which tokens arrive at the attention.
      width: channels that the attention writes and the MLP reads; other than `width_in` only in official deployment.
      mlp_dim: hidden units of the MLP.
    """

    width_in: Size
    width: Size
    mlp_dim: Size


# (layer index, its block, tokens that arrive, sizes of the layer, carry) -> tokens for the layer's MLP, signals of the
# attention, new carry. The carry is what a step hands to the steps of later layers.
TokenStep = Callable[[int, Block, TokenSet, LayerSizes, Any], tuple[TokenSet, AttentionSignals, Any]]
# (tokens before a reduction, tokens after it) -> None.
Watch = Callable[[TokenSet, TokenSet], None]


class LayerReduction(NamedTuple):
    """A token method and the number of tokens that it keeps in every layer.

    Attributes:
      method: the token method.
      num_keep: tokens after each layer, ints (compact) or int32 [B] (masked), all prefix tokens counted. A layer that
        keeps all tokens runs without the method, as the last one does where no head reads the result.
      proportional: whether attention weighs tokens by their sizes; None: as the method does.
    """

    method: TokenMethod
    num_keep: tuple[Size, ...]
    proportional: bool | None = None


def layer_sizes(structure: Structure) -> list[LayerSizes]:
    """Returns the sizes of all layers of a structure, every layer read and written at its own width."""
    return [LayerSizes(width, width, mlp_dim) for width, mlp_dim in zip(structure.widths, structure.mlp_dims)]


def forward_layers(
    blocks: Sequence[Block],
    tokens: TokenSet,
    layers: range,
    sizes: Mapping[int, LayerSizes] | Sequence[LayerSizes],
    steps: Mapping[int, TokenStep] | None = None,
    carry: Any = None,
    mlp_before: LayerSizes | None = None,
) -> tuple[TokenSet, AttentionSignals | None, Any]:
    """Runs layers up to the attention of the last one; the MLP of that one is left to the caller.

    Args:
      blocks: all layers of the network.
      tokens: tokens that arrive at the first of the layers.
      layers: indices of the layers to run, from 0.
      sizes: sizes of each layer, by its index.
      steps: token step of each layer, by its index; a layer without one keeps all tokens.
      carry: handed from step to step.
      mlp_before: sizes of the layer before the first one, if its MLP still has to run.

    Returns:
      Tokens after the last attention and its token step, signals of that attention, the carry.
    """
    signals, before, steps = None, mlp_before, steps or {}
    for layer in layers:
        size = sizes[layer]
        if before is not None:
            tokens = blocks[layer - 1].apply_mlp(tokens, before.width, before.mlp_dim, size.width_in)
        step = steps.get(layer, attention_only)
        tokens, signals, carry = step(layer, blocks[layer], tokens, size, carry)
        before = size
    return tokens, signals, carry


def attention_only(
    layer: int, block: Block, tokens: TokenSet, size: LayerSizes, carry: Any
) -> tuple[TokenSet, AttentionSignals, Any]:
    """Applies the attention of a layer and reduces nothing: the token step of a plain layer.

    The last layer returns only the tokens that the head reads, see `ModelSpec.num_queries`.

    Args:
      layer: index of the layer, from 0.
      block: the layer.
      tokens: the tokens that arrive.
      size: sizes of the layer.
      carry: returned as it is.

    Returns:
      Tokens for the layer's MLP, signals of the attention, the carry.
    """
    num_queries = block.spec.num_queries(layer)
    tokens, signals = block.apply_attention(tokens, size.width_in, size.width, num_queries=num_queries)
    return tokens, signals, carry


def attention_of_all(
    layer: int, block: Block, tokens: TokenSet, size: LayerSizes, carry: Any
) -> tuple[TokenSet, AttentionSignals, Any]:
    """Applies the attention of a layer to all tokens, also in the last layer, for a loss that reads them.

    Args:
      layer: not used.
      block: the layer.
      tokens: the tokens that arrive.
      size: sizes of the layer.
      carry: returned as it is.

    Returns:
      Tokens for the layer's MLP, signals of the attention, the carry.
    """
    tokens, signals = block.apply_attention(tokens, size.width_in, size.width)
    return tokens, signals, carry


def scheduled_step(spec: ModelSpec, reduction: LayerReduction, watch: Watch | None = None) -> TokenStep:
    """Makes the token step of a scheduled reduction, the same for all layers.

    In the last layer it reduces only if that matters, see `ModelSpec.reduces_last_layer`.

    Args:
      spec: the network.
      reduction: method and number of tokens in every layer.
      watch: called with the tokens before and after every reduction.
    """

    def step(layer: int, block: Block, tokens: TokenSet, size: LayerSizes, carry: Any):
        num_keep = reduction.num_keep[layer]
        reduces = layer < spec.space.depth - 1 or spec.reduces_last_layer(reduction.method)
        if not reduces or removes_nothing(tokens, num_keep):
            return attention_only(layer, block, tokens, size, carry)
        before, tokens, signals = attend_and_reduce(spec, block, tokens, size, reduction.method, (num_keep,))
        if reduction.proportional is not None:
            # `members` counts token 0 as one more, as a prefix token; without prefix it is a patch.
            members = tokens.members if spec.num_prefix_tokens else tokens.members.at[:, 0].add(-1.0)
            tokens = tokens._replace(size=members if reduction.proportional else None)
        if watch is not None:
            watch(before, tokens)
        return tokens, signals, carry

    return step


def decision_step(spec: ModelSpec, num_keep: tuple[Size, ...]) -> TokenStep:
    """Makes the token step of a decision point: the network's own method at the chosen number of tokens.

    Args:
      spec: the network; `spec.token_optimization` names the method.
      num_keep: tokens after each step of the method, ints or int32 [B].
    """
    options = {"weighted": True} if spec.weighted_merge and spec.method.takes_weighted else {}

    def step(layer: int, block: Block, tokens: TokenSet, size: LayerSizes, carry: Any):
        _, tokens, signals = attend_and_reduce(spec, block, tokens, size, spec.method, num_keep, **options)
        return tokens, signals, carry

    return step


def attend_and_reduce(
    spec: ModelSpec,
    block: Block,
    tokens: TokenSet,
    size: LayerSizes,
    method: TokenMethod,
    num_keep: tuple[Size, ...],
    **options,
) -> tuple[TokenSet, TokenSet, AttentionSignals]:
    """Applies the attention of a layer and a token method, after it or one step ahead.

    Args:
      spec: the network.
      block: the layer.
      tokens: the tokens that arrive.
      size: sizes of the layer.
      method: the token method.
      num_keep: tokens after each step of the method, all prefix tokens counted; ints or int32 [B].
      **options: of the method's `reduce`.

    Returns:
      Tokens just before the method, tokens for the layer's MLP, signals of the attention.
    """
    if method.group_ahead is not None and not removes_nothing(tokens, num_keep[-1]):
        group = lambda tokens, signals: group_tokens(spec, method, tokens, signals, num_keep)
        return tokens, *block.attention_one_step_ahead(tokens, size.width_in, size.width, group)
    tokens, signals = block.apply_attention(tokens, size.width_in, size.width, method.needs_received)
    return tokens, reduce_tokens(spec, method, tokens, signals, num_keep, **options), signals


def reduce_tokens(
    spec: ModelSpec,
    method: TokenMethod,
    tokens: TokenSet,
    signals: AttentionSignals,
    num_keep: tuple[Size, ...],
    **options,
) -> TokenSet:
    """Reduces the tokens of a network by a method that knows one prefix token; the others are left out of it.

    Args:
      spec: the network.
      method: the token method.
      tokens: the tokens, all prefix tokens among them.
      signals: of the attention before.
      num_keep: tokens after each step of the method, all prefix tokens counted.
      **options: of the method's `reduce`.
    """
    extra_prefix_tokens = spec.extra_prefix_tokens
    if not extra_prefix_tokens:
        return method.reduce(tokens, signals, *num_keep, **options)
    others, their_signals = split_prefix(tokens, signals, extra_prefix_tokens)
    num_others = (shift_size(count, -extra_prefix_tokens) for count in num_keep)
    reduced = method.reduce(others, their_signals, *num_others, **options)
    return join_prefix(reduced, tokens, extra_prefix_tokens)


def group_tokens(
    spec: ModelSpec,
    method: TokenMethod,
    tokens: TokenSet,
    signals: AttentionSignals,
    num_keep: tuple[Size, ...],
) -> Grouping:
    """Groups the tokens of a network by a method that is one step ahead; each other prefix token is a group of its own.

    Args:
      spec: the network.
      method: the token method; `method.group_ahead` is not None.
      tokens: the tokens, all prefix tokens among them.
      signals: of the attention that is about to be applied.
      num_keep: number of groups, all prefix tokens counted.
    """
    extra_prefix_tokens = spec.extra_prefix_tokens
    if not extra_prefix_tokens:
        return method.group_ahead(tokens, signals, *num_keep)
    others, their_signals = split_prefix(tokens, signals, extra_prefix_tokens)
    num_others = (shift_size(count, -extra_prefix_tokens) for count in num_keep)
    return prefix_groups(method.group_ahead(others, their_signals, *num_others), extra_prefix_tokens)
