"""Run with JAX_ENABLE_X64=1: trains stage one of a cascade, serves it and a plain run, writes the answers.

Arguments: workdir of the cascade, workdir of the plain run, .npz file with `images`, .npz file to write.
"""

import sys

import jax
import numpy as np

import prance_jax
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir

if __name__ == "__main__":
    assert jax.config.jax_enable_x64
    cascade, plain, images, answers = sys.argv[1:]
    stages = CascadeStages(Workdir(cascade).config(), Workdir(cascade), Progress(quiet=True))
    trained = jax.tree_util.tree_leaves_with_path(stages.meta(0))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in trained}
    images = np.load(images)["images"].astype(np.float64)  # as a program in 64 bits has them
    with open(answers, "wb") as file:
        cascade_logits, plain_logits = (prance_jax.load(run)(images) for run in (cascade, plain))
        np.savez(file, cascade=cascade_logits, plain=plain_logits, **leaves)
