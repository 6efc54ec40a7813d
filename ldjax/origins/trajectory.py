"""What a ledger is given: how was trained, along which run, and what is watched."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ldjax.equation.account.gradients import Optimizer
from ldjax.equation.sequences import ApplyFn, Batch, LossFn, Sequences, check_sequences
from ldjax.watch.probes import ProbeSet

__all__ = ["Known", "Responses", "Training", "Trajectory"]


class Training(NamedTuple):
    """How the run was trained: what `ldjax.make_step` is given.

    Attributes:
      apply_fn: `(params, sequences) -> logits`, of the model that was trained.
      loss_fn: `(logits, batch) -> scalar`.
      optimizer: Any optax transformation whose updates can be split.
      watch_fn: What the responses' logits are computed by, if not by `apply_fn`.
      where: Which parameters were trained; by default all.

    Examples:
      >>> import ldjax, optax
      >>> apply_fn = lambda table, s: table[s.tokens]
      >>> Training(apply_fn, ldjax.losses.sft, optax.sgd(1.0)).where is None
      True
    """

    apply_fn: ApplyFn
    loss_fn: LossFn
    optimizer: Optimizer
    watch_fn: ApplyFn | None = None
    where: Any = None


class Known(NamedTuple):
    """States of a run that were kept when it was made.

    Attributes:
      steps: After how many updates.
      read: From such a number to the state, of which `Trajectory.training_of` is
        compared.

    Examples:
      >>> Known((0,), lambda step: {"params": np.ones(2)}).steps
      (0,)
    """

    steps: Sequence[int]
    read: Callable[[int], Any]


class Trajectory(NamedTuple):
    """A run as it can be made again, bit for bit.

    Attributes:
      num_steps: How many updates it has.
      start: The state before the first one, a pytree of arrays.
      step_fn: `(state, batch) -> (state, ...)`, the very program of the run; it may
        take the memory of the state that it is given.
      batch_fn: From the number of an update, from 0 on, to its batch: `Sequences`, or
        a pytree of them, of as many rows each time.
      training_of: From a state to what has its `params` and `opt_state`; by default
        itself.
      names_of: From the number of an update to the names of its batch's rows, which
        are those of prompts; None where they have none.
      known: States that are there, to be hit; None where there are none.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ldjax, optax
      >>> from ldjax.runs.loop import make_train_step
      >>> init, step = make_train_step(
      ...     lambda w, s: w[s.tokens], ldjax.losses.sft, optax.sgd(1.0)
      ... )
      >>> batch = ldjax.Sequences(*2 * [jnp.ones((1, 2), int)], jnp.ones((1, 2), bool))
      >>> run = Trajectory(3, init(jnp.zeros((4, 4))), step, lambda step: batch)
      >>> run.training_of(run.start).params.shape
      (4, 4)
    """

    num_steps: int
    start: Any
    step_fn: Callable[[Any, Batch], Any]
    batch_fn: Callable[[int], Batch]
    training_of: Callable[[Any], Any] = lambda state: state
    names_of: Callable[[int], Sequence[str]] | None = None
    known: Known | None = None


class Responses(NamedTuple):
    """What is watched: the sum of the log-probs of each response's scored tokens.

    Attributes:
      prompt_names: Of each response, such as `"train/0003"`.
      types: Such as `"chosen"`; no two responses have both in common.
      sequences: One row for each.

    Examples:
      >>> ids, mask = np.ones((2, 3), int), np.ones((2, 3), bool)
      >>> pair = Sequences(ids, ids, mask)
      >>> Responses(("train/0",) * 2, ("chosen", "rejected"), pair).types
      ('chosen', 'rejected')
    """

    prompt_names: tuple[str, ...]
    types: tuple[str, ...]
    sequences: Sequences

    @classmethod
    def of(cls, probes: ProbeSet) -> "Responses":
        """Probes of different lengths as rows of one.

        Args:
          probes: A probe set.
        """
        length = max(batch.mask.shape[1] for _, batch in probes.batches)

        def padded(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            return np.pad(leaf, [(0, 0), (0, length - leaf.shape[1])])

        rows = probes.gather(
            [jax.tree.map(padded, batch.plain) for _, batch in probes.batches]
        )
        return cls(
            tuple(probe.prompt_name for probe in probes.probes),
            tuple(probe.type for probe in probes.probes),
            rows,
        )

    def checked(self) -> "Responses":
        """These responses, if they can be watched.

        Raises:
          TypeError: If the rows are no `Sequences` of the right types.
          ValueError: If there are none, one occurs twice, or the fields do not fit.
        """
        check_sequences(self.sequences, name="probes.sequences")
        names = list(zip(self.prompt_names, self.types, strict=True))
        rows = len(self.sequences.mask)
        if not names or len(names) != rows:
            raise ValueError(
                f"There are {len(names)} names of probes for {rows} rows: give each "
                "response to be watched a name and a type."
            )
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two probes are {name[1]!r} of {name[0]!r}.")
        return self

    def by_token(self, count: int) -> tuple["Sequences", np.ndarray]:
        """The rows, each scored token of the first ones a row of its own.

        Args:
          count: How many of them.

        Returns:
          The rows, and which response each is of.
        """
        rows = jax.tree.map(np.asarray, self.sequences.plain)
        mask = rows.mask
        places, tokens = np.nonzero(mask[:count])
        alone = np.arange(mask.shape[1]) == tokens[:, None]
        owners = np.concatenate([places, np.arange(count, len(mask))])
        rows = jax.tree.map(lambda leaf: leaf[owners], rows)
        return rows._replace(mask=np.concatenate([alone, mask[count:]])), owners
