"""Arguments of a wrong type or out of range: one line of `create_model` and `load` each."""

import math

import pytest

import prance_jax
from prance_jax.core.errors import UserError

WRONG = [
    (dict(image_size=[192, 256]), "image_size = .192, 256. has the wrong type; it should be int or tuple"),
    (dict(patch_size=(8, 16)), "patch_size = .8, 16. has the wrong type; it should be int"),
    (dict(image_size="384"), "image_size = '384' has the wrong type; it should be int"),
    (dict(image_size=200), "image size 200 is not a multiple of patch size 16"),
    (dict(num_classes="100"), "num_classes = '100' has the wrong type; it should be int"),
    (dict(num_classes=-2), "num_classes = -2 is out of range; it should be from 0"),
    (dict(channels=True), "channels = True has the wrong type"),
    (dict(norm_epsilon=math.nan), "norm_epsilon = nan is out of range"),
    (dict(token_optimization=None), "token_optimization = None has the wrong type"),
    (dict(exits=[0]), "exits = .0. has the wrong type; it should be tuple"),
    (dict(space="small"), "space = 'small' has the wrong type; it should be .*SearchSpace"),
    (dict(remat="no"), "remat = 'no' has the wrong type; it should be bool"),
    (dict(weights=3), "create_model: weights = 3 has the wrong type; it should be str or PathLike or None"),
]


@pytest.mark.parametrize("change, words", WRONG, ids=[str(change) for change, _ in WRONG])
def test_create_model(change, words):
    with pytest.raises(UserError, match=words):
        prance_jax.create_model("deit_small_patch16_224", **change)


def test_names_and_folders():
    with pytest.raises(UserError, match="create_model: name = 7 has the wrong type; it should be str"):
        prance_jax.create_model(7)
    for arguments, words in (
        (dict(workdir=None), "load: workdir = None has the wrong type; it should be str or PathLike"),
        (dict(workdir="w", seed="0"), "load: seed = '0' has the wrong type"),
        (
            dict(workdir="w", token_mode=1),
            "load: token_mode = 1 has the wrong type; it should be str or None",
        ),
    ):
        with pytest.raises(UserError, match=words):
            prance_jax.load(**arguments)
