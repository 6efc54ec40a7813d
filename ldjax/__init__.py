"""ldjax: an exact account of finetuning.

After an optimizer step, by how much did the log-probability of every watched response
really move, by how much does first-order theory say it should have, and why::

    delta log pi  =  -learning_rate * A @ K @ G  +  O(learning_rate ** 2)

* `make_step`: a training step that predicts, measures and explains.
* `decompose`: `A`, `K` and `G` of one step as linear maps.
* `empirical_ntk`: the kernel `K`, by the method of your choice.
* `preconditioner`: the diagonal `P` of a step, for the kernel `J P J^T`.
* `jacobian`, `LinearMap`: what they are made of.
* `Sequences`, `losses`: what is trained on and scored.
* `sharding`: all of this on several devices.
* `Recorder`: probes in a loop of your own, for the report page.

Submodules that need more than JAX and optax (`models`, `data`, `linen`, `report`,
`runs`) are imported when they are first used.
"""

import importlib
from typing import Any

from ldjax import losses, sharding
from ldjax.decompose import StepDecomposition, decompose
from ldjax.dynamics import (
    PendingState,
    StepComparison,
    StepState,
    make_pending_step,
    make_step,
)
from ldjax.linear_map import DenseMap, FunctionMap, LinearMap, jacobian
from ldjax.log_probs import (
    AdvantagedSequences,
    ReferencedSequences,
    Sequences,
    adaptation_matrix,
    log_softmax,
    sequence_log_probs,
    token_log_probs,
)
from ldjax.ntk import empirical_ntk
from ldjax.preconditioner import preconditioner
from ldjax.recorder import Recorder

__all__ = [
    "AdvantagedSequences",
    "DenseMap",
    "FunctionMap",
    "LinearMap",
    "PendingState",
    "Recorder",
    "ReferencedSequences",
    "Sequences",
    "StepComparison",
    "StepDecomposition",
    "StepState",
    "adaptation_matrix",
    "decompose",
    "empirical_ntk",
    "jacobian",
    "log_softmax",
    "losses",
    "make_pending_step",
    "make_step",
    "preconditioner",
    "sequence_log_probs",
    "sharding",
    "token_log_probs",
]

_LAZY_SUBMODULES = ("data", "linen", "models", "report", "runs")


def __getattr__(name: str) -> Any:
    if name in _LAZY_SUBMODULES:
        return importlib.import_module(f"ldjax.{name}")
    raise AttributeError(f"module 'ldjax' has no attribute {name!r}")
