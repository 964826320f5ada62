"""Every token method in plain NumPy, token by token as its paper describes it; the references of the tests.

A token is a list [features, size, original patches].
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from small import quick_jit

from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import AttentionSignals, TokenSet

ONE_RATE = {name: method for name, method in METHODS.items() if method.rates == 1}


def random_case(seed, count=12, sized=False, batch=3):
    """Random tokens and signals; the tokens contain the patches in random order."""
    rng = np.random.default_rng(seed)
    positive = lambda: rng.exponential(size=(batch, count)).astype(np.float32)
    attention, received = positive(), positive()
    signals = AttentionSignals(
        jnp.asarray(attention / attention.sum(1, keepdims=True)),
        jnp.asarray(rng.normal(size=(batch, count, 4)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 2, size=(batch, count)), jnp.float32),
        jnp.asarray(received / received.sum(1, keepdims=True)),
    )
    size = rng.integers(1, 5, (batch, count)).astype(np.float32) if sized else None
    token_of_patch = np.stack([rng.permutation(count - 1) + 1 for _ in range(batch)]).astype(np.int32)
    features = jnp.asarray(rng.normal(size=(batch, count, 6)), jnp.float32)
    tokens = TokenSet(
        features, None if size is None else jnp.asarray(size), None, jnp.asarray(token_of_patch)
    )
    return tokens, signals


@functools.lru_cache(maxsize=None)
def compact_method(name, num_keep):
    """(tokens, signals) -> reduced tokens, compiled for an int."""
    return quick_jit(lambda tokens, signals: ONE_RATE[name].reduce(tokens, signals, num_keep))


def images_of(tokens, signals):
    """For each image its tokens, then its signals."""
    sizes = np.asarray(tokens.sizes)
    for b in range(len(tokens.features)):
        patches = [
            set(np.flatnonzero(np.asarray(tokens.token_of_patch[b]) == i)) for i in range(sizes.shape[1])
        ]
        yield (
            [[np.asarray(x, np.float64), s, p] for x, s, p in zip(tokens.features[b], sizes[b], patches)],
            *(np.asarray(signal[b], np.float64) for signal in signals),
        )


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def merged(group, weights):
    """The token that a group becomes."""
    features = sum(w * x for w, (x, _, _) in zip(weights, group)) / sum(weights)
    return [features, sum(s for _, s, _ in group), set().union(*(p for _, _, p in group))]


def plain_tome(tokens, keys, num_removed):
    even, odd = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    best = {a: max(odd, key=lambda b: cosine(keys[a], keys[b])) for a in even[1:]}
    removed = sorted(best, key=lambda a: -cosine(keys[a], keys[best[a]]))[:num_removed]
    groups = [[b] + [a for a in removed if best[a] == b] for b in odd]
    odd_tokens = [merged([tokens[i] for i in group], [tokens[i][1] for i in group]) for group in groups]
    return [tokens[a] for a in even if a not in removed] + odd_tokens


def plain_evit(tokens, attention, num_sorted):
    order = [0] + sorted(range(1, len(tokens)), key=lambda i: -attention[i])
    fused = order[num_sorted:]
    features = sum(attention[i] * tokens[i][0] for i in fused)
    fused_token = [features, 1.0, set().union(*(tokens[i][2] for i in fused))]
    return [tokens[i] for i in order[:num_sorted]] + [fused_token]


def plain_ppt(tokens, attention, keys, values, num_removed, threshold):
    score = attention[1:] * values[1:]
    score = score / score.sum()
    if score.var(ddof=1) < threshold:
        return plain_tome(tokens, keys, num_removed)
    order = [0] + [1 + i for i in sorted(range(len(score)), key=lambda i: -score[i])]
    return [tokens[i] for i in order[: len(tokens) - num_removed]]


def plain_package(tokens, attention, num_keep, package_score=0.0):
    """package_score: score of the last token, if that is a package; also returns the new score."""
    patches = range(1, len(tokens) - (package_score > 0))
    order = [0] + sorted(patches, key=lambda i: -attention[i])
    packed = order[num_keep - 1 :]
    group = [tokens[i] for i in packed] + ([tokens[-1]] if package_score else [])
    weights = [attention[i] for i in packed] + ([package_score] if package_score else [])
    return [tokens[i] for i in order[: num_keep - 1]] + [merged(group, weights)], sum(weights)


def plain_diffrate(tokens, attention, num_keep, pruned_share):
    order = [0] + sorted(range(1, len(tokens)), key=lambda i: -attention[i])
    order = order[: len(order) - int(pruned_share * (len(order) - num_keep))]
    groups = {i: [i] for i in order[:num_keep]}
    for i in order[num_keep:]:
        groups[max(order[1:num_keep], key=lambda j: cosine(tokens[i][0], tokens[j][0]))].append(i)
    result = []
    for i, group in groups.items():
        token = merged([tokens[j] for j in group], [1.0] * len(group))
        token[1] = sum(
            tokens[j][1] * (1 if j == i else max(cosine(tokens[i][0], tokens[j][0]), 0)) for j in group
        )
        result.append(token)
    return result


def plain_mctf(tokens, received, num_removed):
    inverse = [1 / r for r in received], [1 / s for _, s, _ in tokens]
    information, small = ([v / max(values) for v in values] for values in inverse)

    def score(a, b):
        similar = (1 + cosine(tokens[a][0], tokens[b][0])) / 2
        return similar * (information[a] * information[b]) ** (1 / 20) * (small[a] * small[b]) ** (1 / 40)

    even, odd = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    groups = {i: [i] for i in range(len(tokens))}
    best = {a: max(odd, key=lambda b: score(a, b)) for a in even[1:]}
    removed = sorted(best, key=lambda a: -score(a, best[a]))[: num_removed - num_removed // 2]
    for a in removed:
        groups[best[a]] += groups.pop(a)
    receivers = [a for a in even[1:] if a not in removed]
    best_odd = {b: max(receivers, key=lambda a: score(a, b)) for b in odd} if receivers else {}
    for b in sorted(best_odd, key=lambda b: -score(best_odd[b], b))[: num_removed // 2]:
        groups[best_odd[b]] += groups.pop(b)
    order = [i for i in even + odd if i in groups]
    return [
        merged([tokens[j] for j in groups[i]], [received[j] * tokens[j][1] for j in groups[i]]) for i in order
    ]


def plain_cait(grid, pairs_per_line):
    """grid: rows of tokens; the most similar pairs (0, 1), (2, 3), ... of every row merge."""
    result = []
    for row in grid:
        pairs = sorted(range(0, len(row) - 1, 2), key=lambda j: -cosine(row[j][0], row[j + 1][0]))
        merging, line = set(pairs[:pairs_per_line]), []
        for j, token in enumerate(row):
            if j in merging:
                line.append(merged([token, row[j + 1]], [token[1], row[j + 1][1]]))
            elif j - 1 not in merging:
                line.append(token)
        result.append(line)
    return result


def assert_tokens(actual, expected, image, sizes=True):
    """Compares one image of a token set with the expected tokens, in order."""
    assert actual.features.shape[1] == len(expected)
    for index, (features, size, patches) in enumerate(expected):
        np.testing.assert_allclose(actual.features[image, index], features, rtol=1e-4, atol=1e-5)
        assert set(np.flatnonzero(np.asarray(actual.token_of_patch[image]) == index)) == patches
        if sizes:
            assert float(actual.size[image, index]) == pytest.approx(size, rel=1e-5)
