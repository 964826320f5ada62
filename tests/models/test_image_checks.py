"""Images of another layout, size or type are refused wherever they enter a network, and inside jit as outside."""

import functools

import jax
import numpy as np
import pytest
from cascade.examples import random_cascade, two_looks
from small import PAIR, make_spec

from prance_jax.baselines.pit import PiT
from prance_jax.baselines.pit_spec import PiTSpec
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.cascade import looks
from prance_jax.cascade.executor import serve_cascade
from prance_jax.cascade.forward import forward_cascade, forward_path
from prance_jax.cascade.passes import forward_look
from prance_jax.core.errors import UserError
from prance_jax.models import forward
from prance_jax.models.reduction import METHODS, ScheduledReduction, forward_reduced, forward_segmenter
from prance_jax.models.vit import ViT
from prance_jax.tokens.schedules import Constant

SPEC = make_spec(space=PAIR)
MODEL, LARGEST = ViT(SPEC), SPEC.largest
PIXELS = ViT(make_spec(space=PAIR, pixels=True))
REDUCTION = ScheduledReduction(METHODS["tome"], Constant(1))
PREDICTOR = PredictorViT(SPEC, PredictorConfig(True, (1,), (0.5,), 2))
PIT = PiT(PiTSpec(image_size=16, num_classes=5, patch_size=4, stride=4, dims=(8,), heads=(1,), depths=(1,)))
CASCADE = random_cascade(two_looks(channels=3), seed=0, num_steps=2)
FIXED = forward.fixed_decisions(LARGEST)
KEY = jax.random.key(0)
GOOD = jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")


def stop(node, features):
    return 0 * node


# Name -> (shapes of the parameters, (params, images) -> anything).
WAYS = {
    "ViT": (MODEL, lambda p, x: MODEL.apply({"params": p}, x)),
    "forward_adaptive": (
        MODEL,
        lambda p, x: forward.forward_adaptive(MODEL, p, x, LARGEST.groups[0], FIXED).logits,
    ),
    "forward_reduced": (MODEL, lambda p, x: forward_reduced(MODEL, p, x, LARGEST, REDUCTION).logits),
    "forward_segmenter": (PIXELS, lambda p, x: forward_segmenter(PIXELS, p, x, REDUCTION)),
    "PredictorViT": (PREDICTOR, lambda p, x: PREDICTOR.apply({"params": p}, x).logits),
    "PredictorViT.train": (
        PREDICTOR,
        lambda p, x: PREDICTOR.apply({"params": p}, x, KEY, method="train").logits,
    ),
    "PredictorViT.features": (PREDICTOR, lambda p, x: PREDICTOR.apply({"params": p}, x, method="features")),
    "PiT": (PIT, lambda p, x: PIT.apply({"params": p}, x)),
    "PiT.train": (PIT, lambda p, x: PIT.apply({"params": p}, x, KEY, method="train").logits),
    "forward_look": (
        CASCADE,
        lambda p, x: forward_look(CASCADE.spec, p, x, 0, CASCADE.spec.looks[0].spec.largest),
    ),
    "forward_path": (CASCADE, lambda p, x: forward_path(CASCADE, p, x, 1).logits),
    "forward_cascade": (CASCADE, lambda p, x: forward_cascade(CASCADE, p, x, stop).logits),
    "serve_cascade": (CASCADE, lambda p, x: serve_cascade(CASCADE, p, x, stop).logits),
}
# Channels first; rectangles with as many pixels; another number of channels; no batch axis; no image; integers.
WRONG = {
    (2, 3, 16, 16): "float32",
    (2, 8, 32, 3): "float32",
    (2, 12, 8, 8): "float32",
    (2, 16, 16, 1): "float32",
    (16, 16, 3): "float32",
    (0, 16, 16, 3): "float32",
    (2, 16, 16, 3): "uint8",
}


@functools.lru_cache(maxsize=None)
def param_shapes(network):
    if network is CASCADE:
        return jax.eval_shape(lambda: looks.init_params(CASCADE.spec, KEY))
    if isinstance(network, ViT):
        return jax.eval_shape(lambda: forward.init_params(network, KEY))
    return jax.eval_shape(network.init, KEY, GOOD)["params"]


@pytest.mark.parametrize("name", WAYS)
def test_wrong_images_are_refused(name):
    network, run = WAYS[name]
    for shape, dtype in WRONG.items():
        with pytest.raises(UserError) as refused:
            jax.eval_shape(run, param_shapes(network), jax.ShapeDtypeStruct(shape, dtype))
        expected = "images are uint8; convert" if dtype == "uint8" else r"this model takes [batch, 16, 16, 3]"
        assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_the_error_says_how_to_mend_the_layout():
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), param_shapes(MODEL))
    good = np.zeros((2, 16, 16, 3), np.float32)
    for images, words in (
        (good.transpose(0, 3, 1, 2), "move the channels last"),
        (good[0], "add the batch axis"),
        (list(good), "images are a list"),
    ):
        with pytest.raises(UserError, match=words):
            MODEL.apply({"params": params}, images)
