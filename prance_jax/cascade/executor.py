"""The executor of a cascade: images that stopped leave the batch, and the others run exactly their own step.

At every decision the images are grouped by the step that they take. Each group is split into chunks of one size, and a
loop runs one compiled step per chunk. The number of chunks is known only at run time: `lax.while_loop` over chunks,
`lax.switch` over steps. An image that stopped is in no chunk and costs nothing.

The last chunk of a group is filled up with copies of one of its images. A batch of one image has no loop: it
runs nothing but its own path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.cascade.forward import DecideAtExit, NodeOutput, forward_step
from prance_jax.cascade.observation import NUM_FEATURES
from prance_jax.core.checks import check_images
from prance_jax.spec.cascade import START, Cascade

Params = Any


class ServedOutput(NamedTuple):
    """Result of the executor, in the order of the input.

    Attributes:
      logits: float32 [B, num_classes], the answers with which the images stopped.
      node: int32 [B], where they stopped.
      features: float32 [B, horizon, NUM_FEATURES], of the answers on the way; zero where there was none.
      predicted: int32 [B, horizon], predicted classes on the way; -1 where there was none.
      slots: int32 scalar, images that all chunks together had room for, over the whole pass.
    """

    logits: jax.Array
    node: jax.Array
    features: jax.Array
    predicted: jax.Array
    slots: jax.Array


def serve_cascade(
    cascade: Cascade, params: Params, images: jax.Array, decide: DecideAtExit, chunk: int = 8
) -> ServedOutput:
    """Classifies images, each by its own path, in the time of their own paths.

    Pure; to be jitted by the caller with `cascade`, `decide` and `chunk` static.

    Args:
      cascade: the tree.
      params: parameters of the cascade.
      images: float [B, S, S, channels], normalised as in training.
      decide: takes the decisions.
      chunk: images of a chunk, at most.
    """
    check_images(images, cascade.spec.last.image_shape)
    batch = images.shape[0]
    # An exported program has a symbolic batch size; its chunks are filled up.
    chunk = min(chunk, batch) if isinstance(batch, int) else chunk
    next_nodes = jnp.asarray(cascade.next_nodes)
    node, features = jnp.full(batch, START, jnp.int32), jnp.zeros((batch, NUM_FEATURES), jnp.float32)
    logits = jnp.zeros((batch, cascade.spec.last.num_classes), jnp.float32)
    layout, buffers = _layout(cascade, params, images), {}
    all_features, all_predicted, slots = [], [], jnp.int32(0)
    going = jnp.ones(batch, bool)
    for nodes in _levels(cascade):
        target = jnp.where(going, next_nodes[node, decide(node, features)], node)
        going = going & (target != node)
        level = _Level(cascade, nodes, layout)
        buffers, count = level.run(params, images, buffers, target, going, chunk)
        slots = slots + count
        logits = jnp.where(going[:, None], buffers[".logits"], logits)
        features = jnp.where(going[:, None], buffers[".features"], features)
        node = jnp.where(going, target, node)
        all_features.append(jnp.where(going[:, None], features, 0.0))
        predicted = logits.argmax(-1).astype(jnp.int32)
        all_predicted.append(jnp.where(going, predicted, -1))
    return ServedOutput(logits, node, jnp.stack(all_features, 1), jnp.stack(all_predicted, 1), slots)


def _levels(cascade: Cascade) -> list[list[int]]:
    """Nodes by the number of steps that lead to them, from one step on."""
    depths = [len(cascade.path(node)) for node in range(cascade.num_nodes)]
    return [[n for n, depth in enumerate(depths) if depth == level] for level in range(1, max(depths) + 1)]


class _Layout(NamedTuple):
    """How the output of one node is stored: names and shapes of its leaves for one image."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    treedef: Any


def _layout(cascade: Cascade, params: Params, images: jax.Array) -> list[_Layout | None]:
    """The layout of every node, without running anything."""
    example = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    layouts: list[_Layout | None] = [None]
    outputs: list[Any] = [None]
    for node, step in enumerate(cascade.steps, start=1):

        def run(params, images, before, node=node, parent=step.parent):
            output = forward_step(cascade, params, images, node, _restore(cascade, parent, before))
            return _strip(cascade, node, output)

        outputs.append(jax.eval_shape(run, params, example, outputs[step.parent]))
        leaves, treedef = jax.tree_util.tree_flatten_with_path(outputs[-1])
        layouts.append(
            _Layout(
                tuple(jax.tree_util.keystr(path) for path, _ in leaves),
                tuple(leaf.shape[1:] for _, leaf in leaves),
                tuple(leaf.dtype for _, leaf in leaves),
                treedef,
            )
        )
    return layouts


class _Level(NamedTuple):
    """The steps that lead to some nodes, all as far from the start, and the buffers that their outputs share.

    A buffer has room for the largest output of its name; smaller ones are padded with zeros.
    """

    cascade: Cascade
    nodes: list[int]
    layout: list[_Layout | None]

    def run(self, params, images, before, target, going, chunk):
        """Runs each image's step; returns the buffers [B, ...] and the room of all chunks, in images."""
        batch, number = images.shape[0], len(self.nodes)
        rank = (
            jnp.zeros(self.cascade.num_nodes, jnp.int32)
            .at[jnp.asarray(self.nodes, jnp.int32)]
            .set(jnp.arange(number, dtype=jnp.int32))
        )
        group = jnp.where(going, rank[target], number)  # images that stopped come last, in no chunk
        order = jnp.argsort(group, stable=True)
        sizes = jnp.bincount(group, length=number + 1)[:number]
        chunks = -(-sizes // chunk)
        ends, first_image = jnp.cumsum(chunks), jnp.cumsum(sizes) - sizes
        branches = [self._branch(node, params, images, before) for node in self.nodes]
        buffers = {
            name: jnp.zeros((batch, *shape), dtype) for name, (shape, dtype) in self._buffer_shapes().items()
        }
        if isinstance(batch, int) and batch == 1:
            # All chunks of a loop would be the same image. The compiler would run them before the loop, also the steps
            # that the image does not take.
            buffers = jax.lax.switch(group[0], [*branches, lambda rows: buffers], jnp.zeros(1, jnp.int32))
            return buffers, going.astype(jnp.int32)[0]

        def body(carry):
            index, buffers = carry
            step = jnp.sum(index >= ends)
            offset = (index - ends[step] + chunks[step]) * chunk + jnp.arange(chunk, dtype=jnp.int32)
            # Beyond the end of its group a chunk repeats the group's last image.
            rows = order[first_image[step] + jnp.minimum(offset, sizes[step] - 1)]
            results = jax.lax.switch(step, branches, rows)
            return index + 1, {name: buffers[name].at[rows].set(results[name]) for name in buffers}

        _, buffers = jax.lax.while_loop(lambda carry: carry[0] < ends[-1], body, (jnp.int32(0), buffers))
        return buffers, (ends[-1] * chunk).astype(jnp.int32)

    def _buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
        for node in self.nodes:
            layout = self.layout[node]
            for name, shape, dtype in zip(layout.names, layout.shapes, layout.dtypes):
                known = shapes.get(name, (shape, dtype))[0]
                shapes[name] = (tuple(map(max, known, shape)), dtype)
        return shapes

    def _branch(self, node: int, params, images, before):
        """(rows of a chunk) -> the output of a step for them, padded to the buffers."""
        parent, room = self.cascade.steps[node - 1].parent, self._buffer_shapes()

        def run(rows):
            output = _load(self.layout[parent], before, rows) if parent else None
            output = _restore(self.cascade, parent, output)
            output = forward_step(self.cascade, params, images[rows], node, output)
            output = _strip(self.cascade, node, output)
            leaves = dict(zip(self.layout[node].names, jax.tree.leaves(output)))
            blank = {name: jnp.zeros((len(rows), *shape), dtype) for name, (shape, dtype) in room.items()}
            return blank | {name: _pad(leaf, room[name][0]) for name, leaf in leaves.items()}

        return run


def _load(layout: _Layout, buffers: dict[str, jax.Array], rows: jax.Array) -> NodeOutput:
    """Reads the output of a node for some images back from the buffers."""
    leaves = [
        buffers[name][rows][(slice(None), *map(slice, shape))]
        for name, shape in zip(layout.names, layout.shapes)
    ]
    return jax.tree.unflatten(layout.treedef, leaves)


def _pad(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.pad(leaf, [(0, 0), *((0, new - old) for old, new in zip(leaf.shape[1:], shape))])


def _strip(cascade: Cascade, node: int, output: NodeOutput) -> NodeOutput:
    """Drops what no later step reads, and static sizes, which are no arrays."""
    if not cascade.children[node]:
        return output._replace(state=None)
    unread = {"width": None, "mlp_dim": None, "signals": None, "early_logits": None}
    if not any(_begins_refined(cascade, child) for child in cascade.children[node]):
        unread["patch_attention"] = None
    return output._replace(state=output.state._replace(**unread))


def _begins_refined(cascade: Cascade, node: int) -> bool:
    """Whether the step to a node begins a look whose cells are chosen by the attention before it."""
    step = cascade.steps[node - 1]
    return step.group == 0 and cascade.spec.looks[step.look].spec.refined_cells is not None


def _restore(cascade: Cascade, node: int, output: NodeOutput | None) -> NodeOutput | None:
    """Puts the static sizes of a node back; None at the start."""
    if node == START:
        return None
    choice = cascade.steps[node - 1].choices[-1]
    return output._replace(state=output.state._replace(width=choice.widths[-1], mlp_dim=choice.mlp_dims[-1]))
