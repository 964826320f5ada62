"""Multiply-accumulates, parameters and token counts of a structure: everything that runs, counted once.

The same functions serve a static structure (Python integers, exact) and a per-image one (float32 [B], inside jit).
Conventions of METHODS section 4: MACs are what the papers print as FLOPs; attention runs at the token count before a
reduction and the MLP at the count after it; softmax, norms and GELU are no multiply-accumulates and counted apart.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure
from prance_jax.tokens.counts import if_reduced
from prance_jax.tokens.regroup import pooled_macs, regroup_macs

Amount = int | jax.Array


class Macs(NamedTuple):
    """Multiply-accumulates of one image by where they are spent; ints or float32 [B]."""

    patch_embedding: Amount
    attention: Amount
    mlp: Amount
    residual_maps: Amount
    token_optimization: Amount
    selector: Amount
    classifier: Amount

    @property
    def total(self) -> Amount:
        return sum(self)


class TokenCounts(NamedTuple):
    """Tokens (CLS counted) that the attention and the MLP of each layer see; ints or int32 [B].

    values: tokens whose values are mixed and whose result is projected, where a method is one step ahead; None: those that
    the attention sees."""

    attention: tuple[Size, ...]
    mlp: tuple[Size, ...]
    values: tuple[Size, ...] | None = None


def token_counts(spec: ModelSpec, structure: Structure) -> TokenCounts:
    """Token counts per layer of a structure."""
    attention, mlp, count = [], [], spec.tokens
    for group in structure.groups:
        for layer in range(len(group.widths)):
            attention.append(count)
            if layer == 0:
                count = size_value((count, *spec.tokens_after(count, group.keep))[-1])
            mlp.append(count)
    return TokenCounts(tuple(attention), tuple(mlp), None if spec.method.ahead is None else tuple(mlp))


def macs(spec: ModelSpec, structure: Structure, selector: int = 0, counts: TokenCounts | None = None) -> Macs:
    """Multiply-accumulates of one image under a structure.

    selector: MACs of one decision; it is taken once at every decision point. counts: tokens per layer where something
    else than the structure's keep rates decides them; no token method is counted then.
    """
    space = spec.space
    reducing = _reducing(spec, structure) if counts is None else 0
    counts = counts or token_counts(spec, structure)
    widths, mlp_dims = _numbers(structure, structure.widths), _numbers(structure, structure.mlp_dims)
    before, after = _numbers(structure, counts.attention), _numbers(structure, counts.mlp)
    mixed = before if counts.values is None else _numbers(structure, counts.values)
    attention = mlp = residual_maps = 0
    for layer in range(space.depth):
        qk, vo = (space.heads * channels for channels in spec.head_dims(layer))
        last_of_group = layer + 1 in space.first_layers
        opens_group = layer in space.first_layers[1:]
        width_in = space.max_width if spec.enter_at_widest and opens_group else widths[layer]
        if layer + 1 == space.depth:
            writes = widths[layer]
        else:
            writes = space.max_width if spec.enter_at_widest and last_of_group else widths[layer + 1]
        attention += before[layer] * width_in * 2 * qk + mixed[layer] * vo * (width_in + widths[layer])
        attention += before[layer] * before[layer] * (qk + vo)
        mlp += after[layer] * mlp_dims[layer] * (widths[layer] + writes)
        if last_of_group and spec.residual_maps:
            residual_maps += after[layer] * widths[layer] * writes
    return Macs(
        patch_embedding=spec.patches * spec.patch_values * widths[0],
        attention=attention,
        mlp=mlp,
        residual_maps=residual_maps,
        token_optimization=reducing,
        selector=selector * (space.groups - 1),
        classifier=spec.read_tokens * widths[-1] * spec.outputs,
    )


class ElementOperations(NamedTuple):
    """Elements that pass a softmax, a LayerNorm or a GELU for one image; reported apart from MACs."""

    softmax: Amount
    norm: Amount
    gelu: Amount


def element_operations(spec: ModelSpec, structure: Structure) -> ElementOperations:
    """How many elements the element-wise functions of a structure see; ints or float32 [B]."""
    space, counts = spec.space, token_counts(spec, structure)
    widths, mlp_dims = _numbers(structure, structure.widths), _numbers(structure, structure.mlp_dims)
    before, after = _numbers(structure, counts.attention), _numbers(structure, counts.mlp)
    width_in = [
        space.max_width if spec.enter_at_widest and layer in space.first_layers[1:] else width
        for layer, width in enumerate(widths)
    ]
    return ElementOperations(
        softmax=space.heads * sum(count * count for count in before),
        norm=sum(n * r + m * w for n, m, r, w in zip(before, after, width_in, widths))
        + spec.read_tokens * widths[-1],
        gelu=sum(count * units for count, units in zip(after, mlp_dims)),
    )


def parameters(spec: ModelSpec, structure: Structure) -> Amount:
    """Parameters of the network that a structure touches (the selector's are not included)."""
    space = spec.space
    widths, mlp_dims = _numbers(structure, structure.widths), _numbers(structure, structure.mlp_dims)
    total = widths[0] * (spec.patch_values + 1) + widths[0] * (spec.class_tokens + spec.tokens)
    for layer in range(space.depth):
        width = widths[layer]
        last_of_group = layer + 1 in space.first_layers
        opens_group = layer in space.first_layers[1:]
        width_in = space.max_width if spec.enter_at_widest and opens_group else width
        following = width if layer + 1 == space.depth else widths[layer + 1]
        writes = space.max_width if spec.enter_at_widest and last_of_group else following
        qk, vo = (space.heads * channels for channels in spec.head_dims(layer))
        total = total + 2 * width_in + (width_in + 1) * (2 * qk + vo) + (vo + 1) * width
        total = total + 2 * width + (width + 1) * mlp_dims[layer] + (mlp_dims[layer] + 1) * writes
        if last_of_group and spec.residual_maps:
            total = total + (width + 1) * writes
    return total + 2 * widths[-1] + spec.class_tokens * (widths[-1] + 1) * spec.outputs


def _reducing(spec: ModelSpec, structure: Structure) -> Amount:
    """Products of the token method at all decision points."""
    method, space, total = spec.method, spec.space, 0
    counts, widths = token_counts(spec, structure).attention, _numbers(structure, structure.widths)
    for first, group in zip(space.first_layers[1:], structure.groups[1:]):
        count, *tokens_after = _numbers(
            structure, (counts[first], *spec.tokens_after(counts[first], group.keep))
        )
        extra_prefix_tokens = spec.class_tokens - 1
        count, tokens_after = (
            count - extra_prefix_tokens,
            [size_value - extra_prefix_tokens for size_value in tokens_after],
        )
        total += method.macs(count, tuple(tokens_after), widths[first], space.head_dim)
        if method.received:
            total += (count + extra_prefix_tokens) ** 2 * space.attention_width
        if method.ahead is not None:
            # Its groups are of all tokens, and what the queries gather is averaged, too.
            every = count + extra_prefix_tokens, tokens_after[-1] + extra_prefix_tokens
            own = pooled_macs(*every, space.attention_width) + regroup_macs(*every, widths[first])
            total += if_reduced(
                count, tokens_after[-1], own - regroup_macs(count, tokens_after[-1], widths[first])
            )
    return total


def _numbers(structure: Structure, sizes: tuple[Size, ...]) -> list[Amount]:
    """Integers of a static structure stay exact; else everything is floating point, since totals leave int32."""
    if structure.static and all(isinstance(size, int) for size in sizes):
        return list(sizes)
    return [float(size) if isinstance(size, int) else jnp.asarray(size, jnp.float32) for size in sizes]
