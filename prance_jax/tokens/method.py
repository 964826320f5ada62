"""The interface of a token reduction method.

To add a method of your own:

1. Write a file in `prance_jax/tokens/methods`. It holds a function that reduces a `TokenSet` (most
   call `prance_jax.tokens.regroup.regroup`: it moves every token to a new index, and tokens that
   share one become their mean, weighted by their sizes), a function that counts its MACs (often
   `regroup_macs`), and a `TokenMethod` made of both.
2. Import it in `prance_jax/tokens/methods/registry.py` and add it to the list there. Configs and
   commands then accept its name, the tests of all methods run it, and `compare` has a row for it.

With several `token_modes` in one config the meta-network is trained under `prune_merge` for all of
them; with your method alone, under your method.

`prance_jax/tokens/methods/evit.py` is a short example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import jax

from prance_jax.core.sizes import Rate, Size, size_value
from prance_jax.tokens.counts import shift_size
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.schedules import Schedule, constant_schedules
from prance_jax.tokens.token_set import TokenSet, num_keep_at

Amount = int | jax.Array
"""A count or MACs: int for a static structure, float32 [B] for one structure per image."""

FeasibleCount = Callable[[Size, Size, int], Size]
"""(tokens that arrive, tokens requested, original patches) -> tokens that the method leaves."""

MethodMacs = Callable[[Amount, tuple[Amount, ...], Amount, int], Amount]
"""(tokens that arrive, tokens after each step, channels, channels of a key) -> MACs."""


@dataclass(frozen=True)
class TokenMethod:
    """A method that reduces the tokens of a layer, after its attention and before its MLP.

    Attributes:
      name: name in configs and tables.
      reduce: (TokenSet, AttentionSignals, *num_keep) -> TokenSet. A pure function with static
        shapes. `num_keep` has one number per keep rate, as `feasible_count` returns it: an int
        (compact: tokens are removed) or int32 [B] (masked: tokens become invalid).
      feasible_count: (count, num_keep, patches) -> the count nearest to `num_keep` that the method
        can produce from `count` tokens; see `prance_jax.tokens.feasible_counts`.
      macs: (count, num_keep, width, key_dim) -> MACs of the matrix products in `reduce`.
      rates: number of keep rates that it takes; 2 for methods of two steps.
      tracks_sizes: whether `reduce` updates `TokenSet.size` (`regroup(sized=...)`). Attention is
        proportional to sizes wherever a token set has them.
      needs_received: whether it reads `AttentionSignals.received`.
      needs_importance: whether it reads `AttentionSignals.cls_attention`.
      takes_weighted: whether `reduce` has the keyword argument `weighted`; see
        `prance_jax.tokens.methods.prance.merge`.
      needs_grid: whether the tokens that arrive must form a grid of patches.
      schedules: (depth, tokens) -> the method's usual schedules, from the least reduction to the most;
        see `prance_jax.tokens.schedules`. Comparisons choose among them for given MACs.
      group_ahead: (TokenSet, AttentionSignals, *num_keep) -> Grouping, for methods that run before
        the attention whose map they read (one-step-ahead attention, as MCTF); see
        `prance_jax.models.block.Block.attention_one_step_ahead`. None: after the attention.
    """

    name: str
    reduce: Callable[..., TokenSet]
    feasible_count: FeasibleCount
    macs: MethodMacs
    rates: int = 1
    tracks_sizes: bool = True
    needs_received: bool = False
    needs_importance: bool = True
    takes_weighted: bool = False
    needs_grid: bool = False
    schedules: Callable[[int, int], list[Schedule]] = constant_schedules
    group_ahead: Callable[..., Grouping] | None = None

    def tokens_after(
        self, count: Size, rates: tuple[Rate, ...], floor: int, patches: int, extra_prefix_tokens: int = 0
    ) -> tuple[Size, ...]:
        """Returns the tokens after each step of the method, each step with a keep rate of its own.

        The request of a step is floor(rate x tokens), with at least `floor` tokens.

        Args:
          count: tokens that arrive, all prefix tokens included: int or int32 [B].
          rates: keep rate of each step, in (0, 1].
          floor: smallest number of tokens to request.
          patches: original patches of the image.
          extra_prefix_tokens: see `prance_jax.tokens.prefix`; they count, but are never reduced.
        """
        counts = []
        for rate in rates:
            requested = shift_size(num_keep_at(count, rate, floor), -extra_prefix_tokens)
            feasible = self.feasible_count(shift_size(count, -extra_prefix_tokens), requested, patches)
            counts.append(shift_size(feasible, extra_prefix_tokens))
            count = size_value(counts[-1])
        return tuple(counts)
