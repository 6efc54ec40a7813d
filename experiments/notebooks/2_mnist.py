# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: jupytext,kernelspec,-jupytext.text_representation
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Learning dynamics of handwritten digits
#
# Train LeNet with plain gradient descent, watch fifty test images, and account for
# every step: how much should it have moved each log-probability, how much did it move,
# and how does that add up to what the network finally believes? These are the four
# panels of Figure 1 of [the paper](https://arxiv.org/abs/2407.10490).
#
# All the work is in `experiments/mnist.py`; this notebook chooses settings, runs it and
# says what to look at. Two minutes on two CPU cores. Changes of log-probabilities are
# in **nats** (+0.7 doubles a probability).

# %% [markdown]
# **Setup.** The next cell installs ldjax where it is missing. TPU, GPU and CPU run the
# same cells; on Colab choose one by *Runtime > Change runtime type*.

# %%
# A wheel's path, or git+ and the address of a repository, does as well as the name.
# %pip install -q --disable-pip-version-check ldjax

# %%
import os
from pathlib import Path

SMOKE = os.environ.get("LDJAX_SMOKE") == "1"  # everything tiny, as the tests run it
RUNS = Path(os.environ.get("LDJAX_RUNS", "runs"))
# Compiled functions are kept: a second run starts sooner.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(RUNS / "cache" / "compiled"))

import jax

from ldjax.studies.look import describe, show

# TPUs and recent GPUs multiply float32 matrices in a shorter format unless they are
# told not to. One step moves a log-probability by a thousandth of a nat or less, which
# would drown in that rounding.
jax.config.update("jax_default_matmul_precision", "highest")
print(describe())

# %% [markdown]
# ## The run
#
# Without MNIST's four files (IDX, plain or gzipped) the 8x8 digits that scikit-learn
# brings along stand in, enlarged; the phenomena are the same. Everything is written
# into a run folder: settings, one long table of numbers, a summary, figures.
#
# The script prints its own checks. *Identities* hold for any network, up to rounding
# (the parts of a prediction sum to it; the measured steps sum to the whole change).
# *Claims* are about this run, each with a 95 % interval.

# %%
from ldjax.runs.folder import open_run
from ldjax.studies.mnist import study as mnist

MNIST_DIR: Path | None = None  # such as Path("mnist")

config = mnist.Config(
    out=RUNS / "notebooks" / "mnist",
    mnist_dir=MNIST_DIR,
    overwrite=True,
    smoke=SMOKE,
)
mnist.main(config)
run = open_run(config.out)

# %% [markdown]
# ## The four panels
#
# * **(a)** The trained image is a "4". Grey bars: what the network thinks it is. The
#   arrows are the residual with its sign turned, $-G = y - \pi$: up at the right label,
#   down at all others in proportion to their probability.
# * **(b)** One large step on that image, seen by three *other* images: another 4, a 9
#   (similar), a 0 (dissimilar); the dashes are before. "4" rises on all three, also
#   where it is wrong: an early network hardly tells digits apart, so what it learns of
#   one it applies to all. The other 4 gains most; by how much more than the other nine
#   digits is the first claim above.
# * **(c)** After training: the mean prediction on all images of these three digits.
# * **(d)** The mean prediction for every digit (colours end at the largest
#   confusion). The two scatters are about its off-diagonal cells: labels whose
#   log-probability rose on a class over training are those it is confused with, and
#   those whose images have a large kernel with it.

# %% tags=["reference"]
show(run.figure_path("four_panels"))

# %% [markdown]
# ## Where first order ends
#
# The step of panel (b) at three rates. The remainder in each title is
# |measured - predicted| / |measured|: at this deliberately large rate the theory is off
# by much, at a quarter of it by much less.

# %%
show(run.figure_path("one_step"))

# %% [markdown]
# ## The whole run
#
# Every single step was predicted and measured. Top: the changes added up over all
# steps, by true class and label (orange: up, violet: down). Below: one dot for each
# cell (on the line is perfect), and the right label's gain by origin: the step's own
# gradient, the momentum of earlier ones, weight decay.

# %%
show(run.figure_path("accumulated"))

# %% [markdown]
# ## The kernel
#
# The exact empirical neural tangent kernel between test images, at a dozen moments of
# training. |K| of two digits says how strongly a step on one moves the other. It grows
# while the network learns and then keeps its shape: the *order* of the pairs of digits
# is nearly the same in the second half (bottom right, a rank correlation), which is
# what makes it worth looking at.

# %%
show(run.figure_path("kernel"))
