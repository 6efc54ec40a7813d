"""ldjax: an exact account of finetuning.

After an optimizer step, by how much did the log-probability of every watched response
really move, by how much does first-order theory say it should have, and why::

    delta log pi  =  -learning_rate * A @ K @ G  +  O(learning_rate ** 2)

* `make_step`: a training step that predicts, measures and explains.
* `decompose`: `A`, `K` and `G` of one step as linear maps.
* `empirical_ntk`: the kernel `K`, by the method of your choice.
* `path_integral`: the change between two checkpoints, by layer, matrix or adapter.
* `preconditioner`: the diagonal `P` of a step, for the kernel `J P J^T`.
* `jacobian`, `LinearMap`: what they are made of.
* `Sequences`, `losses`: what is trained on and scored.
* `Recorder`: probes in a loop of your own, for the report page.
* `diff`: what changed between two checkpoints, and where in the model.
* `ledger`: what each training example did to them over a whole run.

The packages, from the ground up: `equation`, `losses`, `linen`, `ntk`, `data`, `runs`,
`models`, `theory`, `watch`, `origins`, `report`, `finetune`, `compare`, `studies`.
Names and packages are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldjax import (
        compare,
        data,
        equation,
        finetune,
        linen,
        losses,
        models,
        ntk,
        origins,
        report,
        runs,
        studies,
        theory,
        watch,
    )
    from ldjax.compare.run import diff
    from ldjax.equation import (
        DenseMap,
        FunctionMap,
        LinearMap,
        PendingState,
        Sequences,
        StepComparison,
        StepDecomposition,
        StepState,
        adaptation_matrix,
        decompose,
        jacobian,
        log_softmax,
        make_pending_step,
        make_step,
        path_integral,
        preconditioner,
        sequence_log_probs,
        token_log_probs,
    )
    from ldjax.finetune.ledger.run import ledger
    from ldjax.ntk import empirical_ntk
    from ldjax.watch.recorder import Recorder

__all__ = [
    "DenseMap",
    "FunctionMap",
    "LinearMap",
    "PendingState",
    "Recorder",
    "Sequences",
    "StepComparison",
    "StepDecomposition",
    "StepState",
    "adaptation_matrix",
    "compare",
    "data",
    "decompose",
    "diff",
    "empirical_ntk",
    "equation",
    "finetune",
    "jacobian",
    "ledger",
    "linen",
    "log_softmax",
    "losses",
    "make_pending_step",
    "make_step",
    "models",
    "ntk",
    "origins",
    "path_integral",
    "preconditioner",
    "report",
    "runs",
    "sequence_log_probs",
    "studies",
    "theory",
    "token_log_probs",
    "watch",
]

_PACKAGES = {
    "compare",
    "data",
    "equation",
    "finetune",
    "linen",
    "losses",
    "models",
    "ntk",
    "origins",
    "report",
    "runs",
    "studies",
    "theory",
    "watch",
}
_HOMES = {
    "Recorder": "ldjax.watch.recorder",
    "empirical_ntk": "ldjax.ntk",
    "diff": "ldjax.compare.run",
    "ledger": "ldjax.finetune.ledger.run",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"ldjax.{name}")
    if name in __all__:
        home = importlib.import_module(_HOMES.get(name, "ldjax.equation"))
        globals()[name] = getattr(home, name)
        return globals()[name]
    raise AttributeError(f"module 'ldjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
