# %% [markdown]
# # PRANCE in JAX
#
# A Vision Transformer that decides for every image how many tokens and channels to spend. This notebook trains one on
# cluttered digits (they come with scikit-learn), shows what it keeps of an image, and serves it at any budget.
#
# It runs from top to bottom on a machine with or without an accelerator; in Colab choose one under *Runtime, Change
# runtime type*. On two CPU cores training takes about a quarter of an hour.
#
# `launch/colab.py` is this notebook as a plain script, cell by cell.

# %% [markdown]
# ## Install

# %%
import glob
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""  # the project's public address, say https://github.com/OWNER/REPO: the one place to put it

if Path("../prance_jax").is_dir():  # opened where it lies, in launch/
    os.chdir("..")
if not Path("prance_jax").is_dir():
    if not REPOSITORY:
        raise SystemExit(
            "Put the project's public address into REPOSITORY above, or upload its folder and go there."
        )
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "prance"], check=True)
    os.chdir("prance")
if "google.colab" in sys.modules:
    tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    extra = "[cuda]" if shutil.which("nvidia-smi") else "[tpu]" if tpu else ""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", f".{extra}"], check=True)
if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())

# %% [markdown]
# ## Train
#
# All three stages, and the baselines: the meta-network, the selector by reinforcement learning, fine-tuning under it. One
# selector is trained for every budget. Stop it and run the cell again: it continues.

# %%
CONFIG = os.environ.get("PRANCE_CONFIG", "configs/digits_budgets.py")
WORKDIR = os.environ.get("PRANCE_WORKDIR", "runs/colab")
CHANGES = os.environ.get(
    "PRANCE_CHANGES",
    "--config.seeds=(0,) --config.budgets=(0.3,0.5,0.75) --config.baselines.single_budget=False",
)

from prance_jax.cli import main


def prance(line):
    """One command of `python -m prance_jax`, in this process, which holds the accelerator."""
    if main(shlex.split(line)):
        raise SystemExit("stopped, see the line above")


prance(f"train --config {CONFIG} --workdir {WORKDIR} {CHANGES}")

# %% [markdown]
# ## The table
#
# Rows `prance_prune_30` ... are one network and one selector, asked for 30 % ... of the dense network's MACs.

# %%
from IPython.display import Image, Markdown, display

display(Markdown(Path(WORKDIR, "results.md").read_text()))

# %% [markdown]
# ## Accuracy against MACs, and against measured speed

# %%
display(Image(filename=str(Path(WORKDIR, "accuracy.png"))))

# %% [markdown]
# ## What was kept
#
# From the image that was given the fewest MACs to the one that was given the most; pruned patches are washed out and
# hatched. All pictures together are in `report.html` in the workdir, one file to download and open.

# %%
display(Image(filename=str(Path(WORKDIR, "show", "kept_prune.png"))))

# %%
display(Image(filename=str(Path(WORKDIR, "show", "easiest_hardest_prune.png"))))

# %% [markdown]
# ## As a library
#
# Networks are Flax modules, a structure is data: static (weights are sliced, compiled for it) or one for each image.

# %%
import jax

import prance_jax
from prance_jax.spec.macs import macs

NAME = os.environ.get("PRANCE_MODEL", "prance_tiny_patch16_224")  # others: prance_jax.list_models()
network = prance_jax.create_model(NAME, token_optimization="merge", num_classes=10)
spec, space = network.spec, network.spec.space
images = jax.random.normal(jax.random.key(1), (2, spec.image_size, spec.image_size, spec.channels))
params = jax.jit(network.init)(jax.random.key(0), images)["params"]
narrow = space.uniform(width=space.widths[0], ratio=space.ratios[0], keep=(0.7,))
logits = jax.jit(lambda p, x: network.apply({"params": p}, x, narrow))(params, images)
print(logits.shape, f"at {macs(spec, narrow).total / macs(spec, spec.largest).total:.0%} of the MACs")

# %% [markdown]
# ## Serve it, at a budget
#
# What was trained above is a function of images. A budget is an argument: no other checkpoint, no new trace.

# %%
import numpy as np

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.data.load import load_source
from prance_jax.training.workdir import Workdir

model = prance_jax.load(WORKDIR)
source = load_source(io.from_dict(Config, Workdir(WORKDIR).config()).data)
test = source.split("test")
budgets = [float(one) for one in np.linspace(*model.budget_table.range, 4)] if model.budget_table else [None]
for budget in budgets:  # None: a selector that was trained for one budget
    told = model.explain(test.images[:250], budget)
    right = np.mean([one.predicted == label for one, label in zip(told, test.labels)])
    spent = np.mean([one.macs_kept for one in told])
    asked = "one budget" if budget is None else f"asked for {budget:.0%} of the MACs"
    print(f"{asked}: {spent:.0%} spent, {right:.1%} right")

# %% [markdown]
# ## Your own pictures
#
# Any pictures, or folders of them. These digits are bright on black, so pictures for this network should be, too; here
# three of the test images take their place.

# %%
from PIL import Image as Picture

mine = Path(WORKDIR, "mine")
mine.mkdir(exist_ok=True)
for index in range(3):
    pixels = np.uint8(255 * np.clip(source.to_unit(test.images[index])[:, :, 0], 0, 1))
    Picture.fromarray(pixels).save(mine / f"{index}.png")
prance(f"show --workdir {WORKDIR} --images {mine}")
display(Image(filename=str(Path(WORKDIR, "show", "own_prune.png"))))

# %% [markdown]
# ## Your own data
#
# A folder (or zip) `train/<class>/<name>.jpg` and `test/<class>/<name>.jpg`; every value of a config can be set in the
# line. Put its path here and run the cell.

# %%
FOLDER = os.environ.get("PRANCE_FOLDER", "")

if FOLDER:
    prance(f"train --config configs/cifar10.py --config.data.folder.path={FOLDER} --workdir {WORKDIR}_mine")
