"""The equation of the paper, term by term, for a model that is a function.

    delta log pi  =  -learning_rate * A @ K @ G  +  O(learning_rate ** 2)

Read it in this order: `sequences` (what is read and scored), `log_probs` (with `A`),
`linear_map` and `jacobian`, `decompose` (`A`, `K` and `G` of one step), `update_parts`
(what the update of an optimizer is made of), `path` (derivatives along all of an
update, for what first order leaves), `account` and `step` (a training step that tells
all of it).
"""

from ldjax.equation.decompose import StepDecomposition, decompose
from ldjax.equation.jacobian import jacobian
from ldjax.equation.linear_map import DenseMap, FunctionMap, LinearMap
from ldjax.equation.log_probs import (
    adaptation_matrix,
    log_softmax,
    sequence_log_probs,
    token_log_probs,
)
from ldjax.equation.path import path_integral
from ldjax.equation.preconditioner import preconditioner
from ldjax.equation.sequences import Sequences
from ldjax.equation.step import (
    PendingState,
    StepComparison,
    StepState,
    make_pending_step,
    make_step,
)

__all__ = [
    "DenseMap",
    "FunctionMap",
    "LinearMap",
    "PendingState",
    "Sequences",
    "StepComparison",
    "StepDecomposition",
    "StepState",
    "adaptation_matrix",
    "decompose",
    "jacobian",
    "log_softmax",
    "make_pending_step",
    "make_step",
    "path_integral",
    "preconditioner",
    "sequence_log_probs",
    "token_log_probs",
]
