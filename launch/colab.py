# %% [markdown]
# # PRANCE in JAX
#
# A Vision Transformer that decides for every image how many tokens and channels to spend. This notebook trains one on
# cluttered digits (part of scikit-learn), shows which tokens it keeps of an image, and serves it at any budget.
#
# It runs from top to bottom on a machine with or without an accelerator. In Colab choose one under *Runtime, Change
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

REPOSITORY = ""  # the project's public address, such as https://github.com/OWNER/REPO

if Path("../prance_jax").is_dir():  # opened in its folder, launch/
    os.chdir("..")
if not Path("prance_jax").is_dir():
    if not REPOSITORY:
        raise SystemExit(
            "Put the project's public address into REPOSITORY above, or upload its folder and change to it."
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
# Trains all three stages and the baselines: the meta-network, the selector by reinforcement learning, and fine-tuning
# under the selector. One selector serves all budgets. Stop it and run the cell again: it continues.

# %%
CONFIG = os.environ.get("PRANCE_CONFIG", "configs/digits_budgets.py")
WORKDIR = os.environ.get("PRANCE_WORKDIR", "runs/colab")
CHANGES = os.environ.get(
    "PRANCE_CHANGES",
    "--config.seeds=(0,) --config.budgets=(0.3,0.5,0.75) --config.baselines.single_budget=False",
)

from prance_jax.cli import main


def prance(line):
    """Runs a command of `python -m prance_jax` in this process, which holds the accelerator."""
    if main(shlex.split(line)):
        raise SystemExit("the command failed, see the line above")


prance(f"train --config {CONFIG} --workdir {WORKDIR} {CHANGES}")

# %% [markdown]
# ## The table
#
# The rows of PRANCE are one network and one selector, with budgets of 30 %, 50 % and 75 % of the dense network's MACs.

# %%
from IPython.display import Image, Markdown, display

display(Markdown(Path(WORKDIR, "results.md").read_text()))

# %% [markdown]
# ## Accuracy against MACs, and against measured speed

# %%
display(Image(filename=str(Path(WORKDIR, "accuracy.png"))))

# %% [markdown]
# ## Which tokens are kept
#
# From the image with the fewest MACs to the one with the most. Pruned patches are washed out and hatched. All pictures
# are in `report.html` in the workdir, one file to download and open.

# %%
display(Image(filename=str(Path(WORKDIR, "show", "kept_prune.png"))))

# %%
display(Image(filename=str(Path(WORKDIR, "show", "easiest_hardest_prune.png"))))

# %% [markdown]
# ## As a library
#
# Networks are Flax modules and a structure is data. A static structure is compiled with sliced weights; a batch can
# also have a structure per image.

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
# The trained workdir is a function of images. The budget is an argument: same checkpoint, same compiled program.

# %%
import numpy as np

from prance_jax.data.load import load_source
from prance_jax.training.workdir import Workdir

model = prance_jax.load(WORKDIR)
source = load_source(Workdir(WORKDIR).config().data)
test = source.split("test")
budgets = np.linspace(*model.budget_table.range, 4).tolist() if model.budget_table else [None]
for budget in budgets:  # None: a selector that was trained for one budget
    explanations = model.explain(test.images[:250], budget)
    top1 = np.mean([image.predicted == label for image, label in zip(explanations, test.labels)])
    macs_kept = np.mean([image.macs_kept for image in explanations])
    name = "one budget" if budget is None else f"budget {budget:.0%} of the MACs"
    print(f"{name}: {macs_kept:.0%} used, top-1 {top1:.1%}")

# %% [markdown]
# ## Your own images
#
# Image files, or folders of them. These digits are bright on black, so images for this network should be, too. Here
# three test images serve as an example.

# %%
from PIL import Image as PILImage

folder = Path(WORKDIR, "user_images")
folder.mkdir(exist_ok=True)
for index in range(3):
    pixels = np.uint8(255 * np.clip(source.to_unit(test.images[index])[:, :, 0], 0, 1))
    PILImage.fromarray(pixels).save(folder / f"{index}.png")
prance(f"show --workdir {WORKDIR} --images {folder}")
display(Image(filename=str(Path(WORKDIR, "show", "user_images_prune.png"))))

# %% [markdown]
# ## Your own data
#
# A folder or zip file with `train/<class>/<name>.jpg` and `test/<class>/<name>.jpg`. Any value of a config can be set
# in the command. Put the path here and run the cell.

# %%
FOLDER = os.environ.get("PRANCE_FOLDER", "")

if FOLDER:
    prance(f"train --config configs/cifar10.py --config.data.folder.path={FOLDER} --workdir {WORKDIR}_mine")
