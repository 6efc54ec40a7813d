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
# # 1. The equation in ten lines
#
# A network is trained on one example. What does that do to its opinion of *another*
# one? To first order in the learning rate $\eta$ the answer is exact
# ([Ren & Sutherland 2025](https://arxiv.org/abs/2407.10490), Proposition 1):
#
# $$\Delta \log \pi(y \mid \chi_o) = -\eta\; A(\chi_o)\; K(\chi_o, \chi_u)\;
# G(\chi_u) + O(\eta^2)$$
#
# * $\chi_u$ is the **update**, the example that is trained on; $\chi_o$ is a **probe**,
#   one that is only watched;
# * $G$, the *residual*, says what the loss wants of the update's logits;
# * $K$, the empirical *neural tangent kernel*, carries that over to the probe's logits:
#   it is large where the network treats the two examples alike;
# * $A$, the *adaptation*, turns logits into log-probabilities.
#
# This notebook computes the three for handwritten digits and compares their product
# with what a step really does. Changes are in **nats** (natural units of a
# log-probability: +0.01 multiplies a probability by about 1.01). It takes a minute on
# a laptop.

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
# ## Data and a network
#
# Scikit-learn's handwritten digits are on board. We train on **one** image and watch
# eighty others: eight of each digit from 0 to 9, in this order. The network is LeNet,
# and it has not learnt anything yet.

# %%
import itertools
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax

import ldjax
from ldjax.data import load_digits
from ldjax.models import LeNet
from ldjax.report.figures import figure, paired_bars
from ldjax.studies.look import kernel_methods
from ldjax.studies.mnist import measure as mnist

digits = load_digits()
update = mnist.take(digits, np.array([0]))
probe = mnist.per_class(digits, 8)
label = int(digits.train_labels[0])
model = LeNet()
untrained = model.init(jax.random.key(0), update.tokens)["params"]
print(f"trained on: one {label}; watched: {len(probe.targets)} images")

# %% [markdown]
# ## Ten lines
#
# The first five lines of the function are the equation. The others take the step and
# look: `measured` is the difference of two forward passes and knows nothing of theory.


# %%
@jax.jit
def one_step(params, learning_rate):
    """First-order and true change of all log-probs of the probes, in nats."""
    probe_fn = ldjax.linen.logits_fn(model, probe)
    update_fn = ldjax.linen.logits_fn(model, update)
    loss_fn = partial(ldjax.losses.sft, batch=update)
    A, K, G = ldjax.decompose(probe_fn, update_fn, params, loss_fn=loss_fn)
    predicted = -learning_rate * A @ K @ G

    gradient = jax.grad(lambda at: loss_fn(update_fn(at)))(params)
    after = jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)
    change = [ldjax.log_softmax(probe_fn(at)) for at in (params, after)]
    return predicted[:, 0], (change[1] - change[0])[:, 0]


predicted, measured = one_step(untrained, 0.01)
print(f"the log-prob of '{label}' on the first watched image:")
print(f"  predicted {predicted[0, label]:+.5f} nats")
print(f"  measured  {measured[0, label]:+.5f} nats")

# %% [markdown]
# ## First order is first order
#
# What the prediction misses must shrink with the *square* of the learning rate: halve
# the rate, and the remainder falls fourfold. That is how to tell a correct first-order
# formula from one that is merely close.

# %%
rates = (0.1, 0.05, 0.025, 0.0125)
remainders = []
for rate in rates:
    predicted, measured = one_step(untrained, rate)
    remainders.append(float(jnp.linalg.norm(measured - predicted)))
print("|remainder| in nats:", *(f"{size:.2e}" for size in remainders))
falls = [large / small for large, small in itertools.pairwise(remainders)]
print("fall at each halving:", *(f"{fall:.2f}" for fall in falls))

# %% [markdown]
# ## The kernel by every method
#
# `K` above was never written out: applying it takes a backward pass through the update
# and a forward-mode pass through the probes. Written out for ten probes it is a table
# of 10 x 10 by 1 x 10 numbers. Every method that works on this machine must give the
# same ones; the printed norms should agree in all digits but perhaps the last.


# %%
@partial(jax.jit, static_argnames="method")
def norm_of_kernel(params, method):
    """Frobenius norm of K between ten probes and the update."""
    few = jax.tree.map(lambda leaf: leaf[::8], probe)
    probe_fn = ldjax.linen.logits_fn(model, few)
    update_fn = ldjax.linen.logits_fn(model, update)
    K = ldjax.empirical_ntk(probe_fn, update_fn, params, method=method)
    return jnp.linalg.norm(K.dense())


for method, problem in kernel_methods().items():
    norm = "" if problem else f"|K| = {norm_of_kernel(untrained, method):.4f}"
    print(f"{method:>10}: {norm or problem}")

# %% [markdown]
# ## A training run, on all devices
#
# Now the network learns: forty steps, each on 64 of the 1000 training images.
# `ldjax.make_step` makes the training step: it takes any optax optimizer and returns,
# with the new state, what the step was predicted to do to every probe and what it did.
#
# If this machine has several devices, `shard` spreads the rows of the update batch and
# of the probes over them and `replicate` gives each a copy of the parameters; with one
# device both do nothing.

# %%
from ldjax.runs.devices import data_mesh, replicate, shard

mesh = data_mesh()
optimizer = optax.sgd(0.05, momentum=0.9)
init, step = ldjax.make_step(ldjax.linen.apply_fn(model), ldjax.losses.sft, optimizer)
state, watched = init(replicate(untrained, mesh)), shard(probe, mesh)

rng = np.random.default_rng(0)
steps = []
for _ in range(2 if SMOKE else 40):
    rows = rng.choice(1000, 64, replace=False)
    state, comparison = step(state, shard(mnist.take(digits, rows), mesh), watched)
    steps.append(np.stack([comparison.predicted, comparison.measured]))

predicted, measured = np.sum(steps, axis=0)[:, :, 0]
own = np.arange(80), np.arange(80) // 8
print(f"the right label of the 80 probes, mean change over {len(steps)} steps:")
print(f"  predicted, added up {predicted[own].mean():+.3f} nats")
print(f"  measured            {measured[own].mean():+.3f} nats")

# %% [markdown]
# At rates that learn this fast the sum of the predictions drifts from what happened:
# each step is first order at *its own* parameters, and what it misses is recorded as
# `comparison.remainder`.
#
# ## What training changes about influence
#
# Finally the same single step on the same image, before and after training. Each pair
# of bars is the mean over the eight watched images of a digit.
#
# **Look at** the trained label's log-probability by digit. **Before** training the step
# lifts it on every digit alike: the network cannot tell them apart. **After** forty
# steps the same label gains much on images of the same digit and on those that the
# network takes for similar ones (for a 6 here 0 and 4), and it *falls* on digits that
# the network keeps apart from it (2 and 3). Predicted and measured bars are as good as
# equal at a rate this small.

# %% tags=["reference"]
trained = jax.device_get(state.params)
path = RUNS / "notebooks" / "influence.png"
path.parent.mkdir(parents=True, exist_ok=True)
title = f"One step on an image of a {label} at rate 0.01: log-prob of '{label}'"
with figure(path, title, ncols=2, figsize=(11, 4)) as axes:
    for ax, when, params in (
        (axes[0, 0], "before training", untrained),
        (axes[0, 1], f"after {len(steps)} steps of training", trained),
    ):
        changes = one_step(params, 0.01)
        bars = {
            name: np.asarray(change[:, label]).reshape(10, 8).mean(1)
            for name, change in zip(("predicted", "measured"), changes, strict=True)
        }
        paired_bars(ax, bars, title=when, xlabel="watched digit", ylabel="nats")
    axes[0, 1].legend()
show(path)

# %% [markdown]
# **Next:** `2_mnist` follows whole training runs on digits, `3_dynamics` does the same
# for a language model.
