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
# # 5. Squeezing, and what helps against it
#
# Preference training pushes rejected answers *down*. Pushing a label down in a softmax
# has a strange effect: the probability it loses goes mostly to whatever is likeliest
# already, and most other labels fall *too*. The paper calls this **squeezing**. Part
# one shows it in a single softmax, where everything is known exactly (seconds). Part
# two finetunes a toy language model with the paper's remedy and with other losses, and
# lets a judge decide (about four minutes on two CPU cores, and two more the first time,
# to pretrain the little base model).

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
# ## One softmax, one step
#
# Five distributions from the paper's own notebook, each before (grey) and after (blue)
# one gradient step; the orange line is the label that is trained on. Row A is an
# ordinary *positive* step, which lifts it. The others are *negative*: in a flat
# distribution (B), beside a peak on a label of 3 % (C) and on a hopeless one (D), among
# 1000 labels (E).
#
# **Look at D**: the label pushed down hardly had any probability, and yet all other
# labels but one fall, by orders of magnitude (right, on a logarithmic axis), while the
# peak takes everything. In B the mass is shared by all. The dotted line is the theory:
# exactly the labels above a *threshold* rise, which is $\|p\|^2 - p_y$ for a small
# step on label $y$. The script checks that for every label of every step.

# %%
from ldjax.runs.folder import open_run
from ldjax.studies.squeezing import study as squeezing

toy = squeezing.Config(
    out=RUNS / "notebooks" / "squeezing", overwrite=True, smoke=SMOKE
)
squeezing.main(toy)
show(open_run(toy.out).figure_path("rows"))

# %% [markdown]
# Three sweeps over one quantity each: the probability of the label pushed down, how
# peaky the distribution is, the size of the step. Top: the threshold (black) between
# what rises and what falls. The less likely the label, the peakier the distribution and
# the larger the step, the fewer labels rise (middle row). The likeliest label's share
# of the mass that moves (bottom row) grows with peakiness and with the step.

# %%
show(open_run(toy.out).figure_path("thresholds"))

# %% [markdown]
# ## The remedy
#
# The paper's remedy, *extend*: before DPO, train SFT on the chosen **and** on the
# rejected answers. The rejected ones are then no longer unlikely, and pushing them down
# should squeeze less. Beside it two changes of the loss: RPO adds SFT on the chosen
# answer to DPO, IPO pulls the margin to a fixed value instead of ever further.
#
# Policies answer prompts that none of them was trained on, and the toy world's judge
# compares the answers. One seed and 240 prompts: intervals are wide. The full study,
# three seeds of 1000 prompts and four losses, is `python experiments/mitigation.py`;
# what it found is in `experiments/README.md`.

# %%
from ldjax.studies.mitigation import study as mitigation

study = mitigation.Config(
    out=RUNS / "notebooks" / "mitigation",
    seeds=(0,),
    world="demo",
    losses=("rpo", "ipo"),
    prompts=240,
    judged=60,
    cache=RUNS / "cache",
    overwrite=True,
    smoke=SMOKE,
)
mitigation.main(study)
run = open_run(study.out)

# %% [markdown]
# **Look at** these curves: mean log-probs in nats, SFT left of zero, DPO right of it.
# After extended SFT (orange) both answers start DPO from higher and lose less: that
# part of the remedy holds (EXT2). *y\** is the greedy word at each place of the chosen
# answer; if probability were squeezed into it, it would rise in DPO while all else
# falls. Here it falls in both.
#
# A claim that "FAILS, refuted" is a finding, not a mistake of the notebook. The toy
# world's rejected answers are not unlikely to begin with (see $p(y^-)$ in the table
# "where DPO starts": about 0.4 for each word), so there is no valley, and little
# squeezing to remedy. Where there is one, as in the paper's data, expect more.

# %% tags=["reference"]
show(run.figure_path("curves"))

# %% [markdown]
# ## Who wins
#
# How often the judge prefers extend's answer to that of plain SFT + DPO, by the length
# of DPO; one half (the line) means no difference, the bars are 95 % intervals over
# prompts. Grey: what the paper reports for its models and judges. A model trained for
# so short a time writes few well-formed answers when it samples, so most comparisons
# are ties; its greedy answers tell policies apart better.

# %%
show(run.figure_path("win_rates"))

# %% [markdown]
# The other losses beside DPO after as many epochs: how far chosen, rejected, y\* and
# the mean of all types moved since SFT, how many answers fell apart, and how often they
# win over DPO's. RPO and IPO lower hardly anything but the rejected answer.

# %%
show(run.figure_path("losses"))
