"""The interface of a token reduction method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import jax

from prance_jax.core.sizes import Rate, Size, size_value
from prance_jax.tokens import counts
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.token_set import TokenSet, num_keep_at

Amount = int | jax.Array
# (tokens that arrive, tokens wanted, original patches) -> tokens that the method leaves then.
Possible = Callable[[Size, Size, int], Size]
# (tokens that arrive, tokens left after each of its steps, channels, width of a key) -> multiply-accumulates.
Cost = Callable[[Amount, tuple[Amount, ...], Amount, int], Amount]


@dataclass(frozen=True)
class TokenMethod:
    """A way to reduce tokens: after the attention of a layer, before its MLP, or one step ahead.

    reduce: (TokenSet, AttentionSignals, *left) -> TokenSet; pure, static shapes; `left`, one number per rate, are ints
      (compact execution) or int32 [B] (masked), as `possible` gives them.
    possible: how many tokens it can leave. macs: what its products cost.
    rates: keep rates that it takes. sized: sizes are tracked, so attention is proportional to them.
    received: it reads the attention that each token receives. weighted: it has the option of that name.
    ahead: (TokenSet, AttentionSignals, *left) -> Grouping, of methods that come before the attention whose map they read, see
      `models.block.Block.attend_ahead`; `reduce` is the same after it. None: after it.
    """

    name: str
    reduce: Callable[..., TokenSet]
    possible: Possible
    macs: Cost
    rates: int = 1
    sized: bool = True
    received: bool = False
    weighted: bool = False
    ahead: Callable[..., Grouping] | None = None

    def tokens_after(
        self, count: Size, rates: tuple[Rate, ...], floor: int, patches: int, extra_prefix_tokens: int = 0
    ) -> tuple[Size, ...]:
        """Tokens after each rate is applied in turn: floor(rate x tokens), `floor` at least, as far as is possible.
        aside: tokens that are counted but stay out of it, see `aside`."""
        result = []
        for rate in rates:
            wanted = counts.shift_size(num_keep_at(count, rate, floor), -extra_prefix_tokens)
            possible = self.possible(counts.shift_size(count, -extra_prefix_tokens), wanted, patches)
            result.append(counts.shift_size(possible, extra_prefix_tokens))
            count = size_value(result[-1])
        return tuple(result)
