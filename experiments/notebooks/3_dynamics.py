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
# # 3. What SFT and DPO do to a language model
#
# A model is finetuned, first to imitate preferred answers (SFT), then to prefer them
# over rejected ones (DPO). Beside the two answers that are trained on we watch ten
# other kinds of response to each prompt, the paper's *probing set*: paraphrases of both
# answers, the same format with other facts, answers to other prompts, shuffled words.
# Which ones rise with the training, which ones fall, and what moved them?
#
# Every observation says how likely a response is under the model: its **log-prob**, the
# sum over its words, in **nats** (-1 makes it 2.7 times less likely). For a few tracked
# responses *every* update is accounted for: predicted by first order, measured, and
# split by what caused it.
#
# About five minutes on two CPU cores, and two more the first time, to pretrain the
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
# ## One switch
#
# By default everything is on board: a toy language with questions and answers about
# invented people, in which each kind of response is made by construction, and a small
# decoder that is pretrained on it. With `HUB = True` it is the paper's own run instead:
# Pythia-410M and Anthropic's helpfulness pairs, both from the Hugging Face hub, with
# the paper's optimizer in bfloat16 (updates only; all that is watched is float32). That
# takes an accelerator with 80 GB of memory, and hours; what does not fit is refused
# with the numbers before anything starts.
#
# With several devices the update batch and the probes are spread over them.

# %%
HUB = False

from typing import Any

from ldjax.finetune import Config, finetune
from ldjax.finetune.prepare import start_of
from ldjax.finetune.settings.config import PRESETS_OF_THE_PAPER

settings: dict[str, Any] = {"cache": RUNS / "cache", "smoke": SMOKE, "overwrite": True}
if HUB:
    settings |= PRESETS_OF_THE_PAPER["pythia-410m"]
else:
    settings |= {"probe_prompts": 20, "tracked": 3}
if SMOKE:
    settings |= {"one_step": False, "token_maps": 0}
base = start_of(Config.of(**settings).resolved())
folder = RUNS / "notebooks" / "dynamics"

# %% [markdown]
# ## SFT
#
# The run says, for the tracked responses, the change over the whole run
# (`measured`), the sum of the predictions (`predicted`) and how well single updates
# were explained (`signs`: share of updates whose direction was right; `rest/step`: what
# first order missed of them). Then where the changes come from, and the paper's
# published *signatures*: does this run show what the authors' runs show? On a run this
# small not all of them have to.

# %%
sft = finetune(Config.of(**settings | {"out": folder / "sft", "model": base}))
print(sft)
show(sft.run.figure_path("curves"))

# %% [markdown]
# **Look at** these things:
#
# * the **chosen** answer rises most, by some 40 nats; on held-out prompts only half as
#   much, which is what the *form* of an answer is worth;
# * the **rejected** answer rises nearly as far, though nobody trained on it: it looks
#   much like the chosen one, so the kernel between the two is large. Only then does the
#   margin between them open, and on trained prompts alone;
# * **irr_train**, an answer trained for *another* prompt, stays high for this prompt as
#   well, while **irr_test**, which is never trained on, falls back. That is the paper's
#   account of one kind of hallucination;
# * answers in **other words** (`gptsemantic`, `gptformat`) fall: in the toy language
#   they are another writer's style, and the model leaves it;
# * **shuffled words** gain for a few updates, then fall.
#
# In the printed table the predictions of most types overshoot (`predicted` against
# `measured`) while the signs are right in more than nine updates of ten: at the rate
# that trains well each step is far too large for first order alone. That is a finding,
# too; with `recipe="slow"`, plain gradient descent at a twentieth of the rate, the two
# agree.
#
# ## DPO
#
# DPO starts from the model that SFT left, which is also its reference. It pushes the
# log-prob of the chosen answer up and that of the rejected one down.

# %%
after_sft = {"loss": "dpo", "init": sft.run.path, "initial_from": base, "model": None}
dpo = finetune(Config.of(**settings | after_sft | {"out": folder / "dpo"}))
print(dpo)
run = dpo.run

# %% [markdown]
# **Look at** the panels of the margin first: chosen minus rejected grows by some 30
# nats, as it is meant to, but only for prompts that were trained on. Then at the two
# themselves: the margin opens because **both fall**, the rejected answer faster.
# Other responses of their kind (`irr_train`, `irr_test`) fall with them. What SFT had
# pushed out of the way, other styles and shuffled words, comes back. The greedy tokens
# y\* lose as well; in the paper's runs they *rise* while all else falls, which
# `5_squeezing` is about.

# %% tags=["reference"]
show(run.figure_path("curves"))

# %% [markdown]
# ## Predicted and measured
#
# Every update of the tracked responses: top, one dot for each (on the line is perfect);
# bottom, added up, solid measured and dashed predicted. Unlike those of SFT, these
# updates are small enough for first order to explain them.

# %%
show(run.figure_path("predicted_against_measured"))

# %% [markdown]
# **Why does the chosen answer fall**, when half of the loss pushes it up? The chosen
# side of the pairs lifts it by more than 100 nats over the run. The rejected side takes
# as much away again: the two answers look alike, so what pushes one pushes the other.
# What is left, the optimizer's memory of earlier steps decides. The bars of a response
# sum to its measured change (the black diamond).

# %%
show(run.figure_path("by_side"))

# %% [markdown]
# ## The page
#
# Both runs as one self-contained page: curves with values under the pointer, every
# watched response word by word, both runs overlaid. It needs no network. Download it
# (on Colab: from the file browser at the left) and open it in any browser.

# %%
from IPython.display import FileLink, display

from ldjax.report import write_page

page = write_page([sft.run, dpo.run], folder / "report.html")
print(f"{page.stat().st_size / 1e6:.1f} MB")
display(FileLink(os.path.relpath(page)))
