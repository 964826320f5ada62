"""A second implementation of PRANCE's network: one image, one structure, NumPy in float64, token by token.

It follows sections 3.1 and 3.2 of the paper with this package's native semantics. It shares only the
stored weights with the package, no code and no array layout.
"""

import math

import numpy as np


def forward(params, image, groups, *, mode, heads, patch, epsilon=1e-6):
    """Computes the logits and, for each remaining token, the original tokens that it contains.

    Args:
      params: as stored by the package.
      image: [S, S, channels].
      groups: (widths, MLP sizes, keep rates) of each group.
      mode: 'prune', 'merge' or 'prune_merge'.
      heads: attention heads.
      patch: side of a patch in pixels.
      epsilon: of LayerNorm.
    """
    widths = [width for group in groups for width in group[0]]
    mlp_dims = [mlp_dim for group in groups for mlp_dim in group[1]]
    tokens = _embed(params, np.asarray(image, np.float64), widths[0], patch)
    members = [[n] for n in range(len(tokens))]
    layer = 0
    for index, (group_widths, _, rates) in enumerate(groups):
        for layer_in_group in range(len(group_widths)):
            block, d = _weights(params, layer), widths[layer]
            residuals, importance = _attention(block, tokens, [len(m) for m in members], d, heads, epsilon)
            tokens = [token + residual for token, residual in zip(tokens, residuals)]
            if layer_in_group == 0 and index > 0:
                tokens, members = _reduce(tokens, members, importance, mode, rates)
            is_last = layer + 1 == len(widths)
            width_out = d if is_last else widths[layer + 1]
            is_mapped = layer_in_group + 1 == len(group_widths) and not is_last
            tokens = [
                _mlp(block, token, d, mlp_dims[layer], width_out, is_mapped, epsilon) for token in tokens
            ]
            layer += 1
    d = widths[-1]
    cls = _norm(tokens[0], _double(params["norm"]), d, epsilon)
    head = _double(params["head"])
    return cls @ head["kernel"][:d] + head["bias"], members


def _double(tree):
    return {
        name: _double(leaf) if isinstance(leaf, dict) else np.asarray(leaf, np.float64)
        for name, leaf in tree.items()
    }


def _weights(params, layer):
    return _double(params[f"block_{layer}"])


def _embed(params, image, d, patch):
    weights = _double(params["patch_embed"])
    cls_token, positions = (
        np.asarray(params["cls_token"], np.float64),
        np.asarray(params["pos_embed"], np.float64),
    )
    side = image.shape[0] // patch
    tokens = [cls_token[:d] + positions[0, :d]]
    for row in range(side):
        for column in range(side):
            pixels = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            value = pixels.ravel() @ weights["kernel"][:, :d] + weights["bias"][:d]
            tokens.append(value + positions[1 + row * side + column, :d])
    return tokens


def _norm(x, weights, d, epsilon):
    x = (x - x.mean()) / math.sqrt(x.var() + epsilon)
    return x * weights["scale"][:d] + weights["bias"][:d]


def _attention(block, tokens, sizes, d, heads, epsilon):
    """What attention adds to every token, and the attention from CLS, averaged over heads."""
    kernel, bias = block["qkv"]["kernel"], block["qkv"]["bias"]
    inner = kernel.shape[1] // 3
    head_dim = inner // heads
    projected = [_norm(token, block["norm1"], d, epsilon) @ kernel[:d] + bias for token in tokens]
    mixed, importance = np.zeros((len(tokens), inner)), np.zeros(len(tokens))
    for head in range(heads):
        q, k, v = (
            np.array([row[part * inner + head * head_dim :][:head_dim] for row in projected])
            for part in range(3)
        )
        for n in range(len(tokens)):
            logits = k @ q[n] / math.sqrt(head_dim) + np.log(sizes)
            attention = np.exp(logits - logits.max())
            attention /= attention.sum()
            mixed[n, head * head_dim : (head + 1) * head_dim] = attention @ v
            if n == 0:
                importance += attention / heads
    return mixed @ block["proj"]["kernel"][:, :d] + block["proj"]["bias"][:d], importance


def _mlp(block, x, d, mlp_dim, width_out, is_mapped, epsilon):
    h = (
        _norm(x, block["norm2"], d, epsilon) @ block["fc1"]["kernel"][:d, :mlp_dim]
        + block["fc1"]["bias"][:mlp_dim]
    )
    h = np.array([u * 0.5 * (1 + math.erf(u / math.sqrt(2))) for u in h])
    h = h @ block["fc2"]["kernel"][:mlp_dim, :width_out] + block["fc2"]["bias"][:width_out]
    if is_mapped:
        weights = block["residual_map"]
        return h + x @ weights["kernel"][:d, :width_out] + weights["bias"][:width_out]
    return h + np.concatenate([x, np.zeros(max(width_out - d, 0))])[:width_out]


def _reduce(tokens, members, importance, mode, rates):
    order = [0, *sorted(range(1, len(tokens)), key=lambda n: -importance[n])]
    tokens, members, rates = [tokens[n] for n in order], [members[n] for n in order], list(rates)
    if mode in ("prune", "prune_merge"):
        num_keep = _num_keep(len(tokens), rates.pop(0))
        tokens, members = tokens[:num_keep], members[:num_keep]
    if mode in ("merge", "prune_merge"):
        num_keep = _num_keep(len(tokens), rates.pop(0))
        merged = {n: [n] for n in range(num_keep)}
        for n in range(num_keep, len(tokens)):
            merged[max(range(1, num_keep), key=lambda m: _cosine(tokens[n], tokens[m]))].append(n)
        tokens, members = (
            [sum(tokens[n] for n in group) / len(group) for group in merged.values()],
            [sum((members[n] for n in group), []) for group in merged.values()],
        )
    return tokens, members


def _num_keep(count, rate):
    """floor(rate x count) with both in float32, never fewer than CLS and one patch."""
    return max(2, int(np.floor(np.float32(rate) * np.float32(count))))


def _cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)
