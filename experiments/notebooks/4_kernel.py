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
# # 4. The exact kernel between two texts
#
# Type two texts. If a language model takes one step of training on the second (the
# **update**), what happens to every word of the first (the **probe**), and why? The
# answer needs the empirical neural tangent kernel K between the two: for every pair of
# words a matrix of (vocabulary x vocabulary) numbers. For a decoder it has a shape that
# lets ldjax compute it *exactly*: no sampling, no truncation, no averaging.
#
# About three minutes on two CPU cores, and two more the first time, to pretrain the
# little base model.

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
# ## Two texts
#
# The default model knows the toy language of `ldjax.data.world` (355 words, all in
# lower case; words it does not know are counted in the output). `MODEL` may also be the
# folder of a run, of a model as Hugging Face lays it out, or a name on the hub such as
# `EleutherAI/pythia-70m`; then write plain English. What does not fit the memory is
# refused with the numbers.
#
# A prompt is read, not scored: the kernel is between the words of the two *texts*.

# %%
MODEL = ""
PROMPT = " question : what of the life of bana dorby ?\n answer :"
PROBE = (
    "why , bana dorby sells soft wood ; writes rare recipes and wields plain buckets "
    "and sounds kind flutes ; calls on loud poets ; dines on smooth beans ."
)
UPDATE = (
    "why , bana dorby hawks smooth glass ; writes plain letters ; wields plain buckets "
    "; sounds cruel harps ; calls on loud poets ; dines on smooth beans ."
)

from ldjax.data.world.world import make_world
from ldjax.runs.folder import open_run
from ldjax.studies.kernel import study as kernel

print("some words of the toy language:", *make_world("demo", seed=0).words[6::9])

# %% [markdown]
# ## The kernel
#
# `experiments/kernel.py` prints, for each word of the probe, which words the step makes
# more and less likely at that place (the change of the log-prob in nats), the size of
# the kernel, and eight identities that tie independent computations of the same numbers
# together (all must hold).
#
# Two numbers deserve a look. *The head's multiple of the identity*: what the last layer
# alone would give, a kernel that moves each logit by itself. *The distance from k I*:
# how far the kernel is from that shape; 0 would be exactly it, 1 is nothing of it. The
# usual picture of how a push on one word spreads to the others assumes 0.

# %%
config = kernel.Config(
    out=RUNS / "notebooks" / "kernel",
    model=MODEL,
    probe_prompt=PROMPT,
    probe_text=PROBE,
    update_prompt=PROMPT,
    update_text=UPDATE,
    cache=RUNS / "cache",
    overwrite=True,
)
if SMOKE:
    config = kernel.Config(out=config.out, overwrite=True, smoke=True)
kernel.main(config)
run = open_run(config.out)

# %% [markdown]
# ## What each word of the update does to each word of the probe
#
# Rows are words of the probe, columns those of the update; a cell is the first-order
# change of the row's log-prob that the column's word causes, in nats (orange up,
# violet down). The bars at the right are the sums of the rows.
#
# **Look at** the diagonal: where both texts have the same word at the same place, the
# step makes it likelier; where they part (`sells` and `hawks`, `rare` and `plain`) the
# probe's word loses. Off the diagonal, each `;` of the update lifts every `;` of the
# probe. And one word gains more than all others together: the model did not expect
# `buckets` after `plain`, and this is where the update teaches it most.

# %% tags=["reference"]
show(run.figure_path("token_map"))

# %% [markdown]
# ## How large the blocks are
#
# The size of each (vocabulary x vocabulary) block of K, its mean diagonal entry k, and
# its distance from k I relative to its size.

# %%
show(run.figure_path("block_norms"))

# %% [markdown]
# ## Which layers it comes from
#
# K is a sum over parameters, so it can be split by layer, exactly. Left: the size of
# each part; middle: its share of the trace; right: its share of the predicted change
# (these sum to the whole change).

# %%
show(run.figure_path("groups"))

# %% [markdown]
# ## What is pushed where
#
# The words whose probability moves most at each place of the probe.

# %%
show(run.figure_path("pushed_tokens"))
