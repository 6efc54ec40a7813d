"""A loop of one's own that is taken again, from what its recorder kept."""

from collections.abc import Callable
from typing import Any

from ldjax.finetune.ledger.replay import Replay
from ldjax.origins import Known, Training, Trajectory
from ldjax.runs.folder import Run
from ldjax.watch.keeping import KeptLoop
from ldjax.watch.record import TRAIN, set_of

__all__ = ["rebuild_loop"]


def rebuild_loop(
    run: Run,
    training: Training,
    step_fn: Callable[[Any, Any], Any] | None,
    state: Any,
    updates: int | None,
) -> Replay:
    """A loop as it was before its first update.

    Args:
      run: The folder of its recorder.
      training: How it was trained.
      step_fn: `(state, batch) -> (state, ...)`, the very program of the loop.
      state: Any state of the loop, for its structure and places.
      updates: How many updates to take again; None for all that were kept.

    Raises:
      FileNotFoundError: If nothing was kept.
      TypeError: If there is no `step_fn`, or no `params` and `opt_state` in `state`.
      ValueError: If not so many were kept, or `state` is of another structure.
    """
    if step_fn is None or not (
        hasattr(state, "params") and hasattr(state, "opt_state")
    ):
        raise TypeError(
            "A loop of your own is taken again with `training`, `step_fn` and `state`:"
            " `step_fn(state, batch)` gives the new state first, and a state has its "
            f"`params` and `opt_state`; got {step_fn} and {type(state).__name__}."
        )
    kept = KeptLoop(run.path)
    num_steps = kept.num_steps if updates is None else updates
    if not 1 <= num_steps <= kept.num_steps:
        raise ValueError(
            f"`updates` must be at least 1 and at most {kept.num_steps}, as many as "
            f"were kept in {run.path}, got {num_steps}."
        )

    def read(step: int) -> Any:
        return kept.states.read(step, state).state

    known = [step for step in kept.states.steps() if 0 < step <= num_steps]
    probes = kept.probes()
    names = [probe.prompt_name for probe in probes]
    return Replay(
        training=training,
        trajectory=Trajectory(
            num_steps=num_steps,
            start=read(0),
            step_fn=step_fn,
            batch_fn=kept.batch,
            names_of=kept.names,
            known=Known(known, read),
        ),
        probes=probes,
        tracked=frozenset(name for name in names if set_of(name) == TRAIN),
        max_length=max(probe.example.num_tokens for probe in probes),
        examples=kept.examples(),
    )
