"""The training loop: steps, the table of what they measured, checkpoints, resume.

A run is a pure function of its settings. The batch of a step depends on the seed and
the number of the step alone, and a checkpoint holds everything else that continues
(see `ldjax.runs.checkpoints`). So a run that is killed at any moment and resumed ends
with the same bits as one that is not.
"""

import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ldjax.equation.doors import Door
from ldjax.equation.sequences import ApplyFn, LossFn, Sequences
from ldjax.equation.step import StepState
from ldjax.progress import progress
from ldjax.runs.checkpoints import Checkpoints, Progress, Table

__all__ = [
    "NonFiniteError",
    "Observer",
    "every",
    "make_batch_fn",
    "make_train_step",
    "mean_token_loss",
    "train",
]

State = Any  # a pytree of arrays


class NonFiniteError(FloatingPointError):
    """A number of the table is not finite; the message says which and of what step.

    Examples:
      >>> def step_fn(state, batch):
      ...     return state, {"loss": np.inf}
      >>> run = train(
      ...     jnp.zeros(()), num_steps=1, step_fn=step_fn, batch_fn=float, save_every=1
      ... )
      >>> next(run)
      Traceback (most recent call last):
        ...
      ldjax.runs.loop.NonFiniteError: At step 0: loss (train) is inf, not finite. ...
    """


class Observer(NamedTuple):
    """Something measured along the way.

    Attributes:
      observe: From the state to named numbers, of the same names and shapes each time;
        an empty mapping is no measurement.
      is_due: Whether to observe after so many steps; after the last step it always is.
      looks_ahead: Whether `observe` is given the update that follows as well, as
        `(state, following, metrics)`: the state after it and what it measured. After
        the last step there is none, and nothing is observed. The step must leave the
        state it is given alone, unlike that of `make_train_step`.

    Examples:
      >>> observer = Observer(lambda state: {"norm": jnp.abs(state)}, every(50))
      >>> [step for step in range(120) if observer.is_due(step)]
      [0, 50, 100]
    """

    observe: Callable[..., Mapping[str, Any]]
    is_due: Callable[[int], bool]
    looks_ahead: bool = False


def every(interval: int) -> Callable[[int], bool]:
    """When an `Observer` is due that looks in equal intervals, from step 0 on.

    Args:
      interval: Number of steps between two observations.

    Returns:
      From the number of steps taken to whether it is a multiple of the interval.

    Examples:
      >>> every(50)(100)
      True
    """
    return lambda step: step % interval == 0


def mean_token_loss(
    logits: Float[Array, "*batch pos vocab"], batch: Sequences
) -> Float[Array, ""]:
    r"""Pretraining loss: the mean over all scored tokens.

    .. math:: L = -\frac{\sum_{bl} \mathrm{mask}_{bl} \log \pi(y_{bl} \mid \chi_b)_l}
                       {\sum_{bl} \mathrm{mask}_{bl}}

    Unlike `ldjax.losses.sft`, which sums over the tokens of a sequence.

    Args:
      logits: Unnormalised log-probabilities, in nats.
      batch: Targets and mask, at least one of it true.

    Returns:
      The loss in nats per token.

    Examples:
      >>> batch = Sequences(jnp.zeros((1, 2), int), *jnp.ones((2, 1, 2), int))
      >>> mean_token_loss(jnp.zeros((1, 2, 4)), batch._replace(mask=batch.mask > 0))
      Array(1.386..., dtype=...)
    """
    # On a CPU 30 % less time for a whole step than by way of `token_log_probs`: its
    # gradient writes the array of logits once.
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(batch.mask, batch.targets, 0)
    )
    return jnp.where(batch.mask, losses, 0).sum() / batch.mask.sum()


def make_train_step(
    apply_fn: ApplyFn, loss_fn: LossFn, optimizer: optax.GradientTransformation
) -> tuple[
    Callable[[Any], StepState],
    Callable[[StepState, Any], tuple[StepState, dict[str, Array]]],
]:
    """A plain optimizer step, for `train`; `ldjax.make_step` is the one that explains.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      loss_fn: `(logits, batch) -> scalar`.
      optimizer: Any optax transformation.

    Returns:
      `init(params) -> state`, and `step(state, batch) -> (state, metrics)` with the
      metrics `loss` (before the step, in the unit of `loss_fn`) and `update_norm`
      (Euclidean, over all parameters). The step is compiled and reuses the memory of
      the state it is given, which cannot be used again.

    Raises:
      TypeError: On a step, if what `apply_fn` returns is no array of logits, float32 or
        wider.
      ValueError: On a step, if its state was used before; if the logits are not
        `[batch, pos, vocab]`; if a token id is not in the model's vocabulary, a target
        that is scored is no label (mask those of -100), or a row has more positions
        than the model learned. The state can then be used again.

    Examples:
      >>> init, step = make_train_step(
      ...     lambda params, batch: params + jnp.zeros((1, 2, 4)),
      ...     mean_token_loss,
      ...     optax.sgd(1.0),
      ... )
      >>> batch = Sequences(*2 * [jnp.ones((1, 2), int)], jnp.ones((1, 2), bool))
      >>> state, metrics = step(init(jnp.zeros((1, 2, 4))), batch)
      >>> metrics["loss"], state.step
      (Array(1.386..., dtype=...), Array(1, dtype=int32))
    """
    apply_fn = Door(apply_fn)

    def init(params: Any) -> StepState:
        # A copy, because the first step takes the memory of what it is given.
        params = jax.tree.map(jnp.copy, params)
        loss = jnp.full((), jnp.nan, jnp.result_type(*jax.tree.leaves(params)))
        return StepState(params, optimizer.init(params), jnp.zeros((), jnp.int32), loss)

    @functools.partial(jax.jit, donate_argnums=0)
    def taken(state: StepState, batch: Any) -> tuple[StepState, dict[str, Array]]:
        def loss_of(params: Any) -> Array:
            return loss_fn(apply_fn(params, batch), batch)

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss = loss.astype(state.loss.dtype)
        metrics = {"loss": loss, "update_norm": optax.tree.norm(updates)}
        return StepState(params, opt_state, state.step + 1, loss), metrics

    def step(state: StepState, batch: Any) -> tuple[StepState, dict[str, Array]]:
        apply_fn.check(taken, state=state, batch=batch)
        return taken(state, batch)

    return init, step


def make_batch_fn(rows: Any, *, batch_size: int, seed: int) -> Callable[[int], Any]:
    """The batch of each step, a function of its number alone.

    Each epoch is a new random order of the rows, cut into batches; the rest that fills
    none is left out.

    Args:
      rows: Pytree of arrays, `[row, ...]`, such as `Sequences`.
      batch_size: Rows of a batch.
      seed: Of the orders.

    Returns:
      From the number of a step, from 0 on, to its batch (host arrays).

    Raises:
      ValueError: If there are not enough rows for one batch.

    Examples:
      >>> batch_fn = make_batch_fn(np.arange(4), batch_size=2, seed=0)
      >>> sorted(np.concatenate([batch_fn(2), batch_fn(3)]).tolist())
      [0, 1, 2, 3]
    """
    rows = jax.device_get(rows)
    num_rows = len(jax.tree.leaves(rows)[0])
    if not 1 <= batch_size <= num_rows:
        raise ValueError(
            f"`batch_size` must be between 1 and the number of rows, {num_rows}; got "
            f"{batch_size}."
        )

    @functools.lru_cache(maxsize=1)
    def order_of(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(num_rows)

    def batch_fn(step: int) -> Any:
        epoch, place = divmod(step, num_rows // batch_size)
        chosen = order_of(epoch)[place * batch_size : (place + 1) * batch_size]
        return jax.tree.map(lambda leaf: leaf[chosen], rows)

    return batch_fn


def train(
    state: State,
    *,
    num_steps: int,
    step_fn: Callable[[State, Any], tuple[State, Mapping[str, Any]]],
    batch_fn: Callable[[int], Any],
    save_every: int,
    checkpoints: Checkpoints | None = None,
    observers: Mapping[str, Observer] | None = None,
    tokens_per_step: int = 1,
    flush_every: int = 10,
    on_table: Callable[[Table], None] | None = None,
) -> Generator[Progress, None, None]:
    """Train from the newest checkpoint on, or from the start where there is none.

    Args:
      state: The state before the first step.
      num_steps: Number of steps of the whole run.
      step_fn: `(state, batch) -> (state, metrics)`, for example of `make_train_step`;
        `metrics` has a `loss` (nats per token on the progress bar).
      batch_fn: From the number of a step, from 0 on, to its batch: a pure function.
      save_every: Number of steps between two checkpoints; there is one at the end.
      checkpoints: Where; None to keep nothing.
      observers: Other series of the table, by name.
      tokens_per_step: For the speed on the progress bar, in tokens.
      flush_every: Number of steps between two looks at the metrics, which wait for the
        device.
      on_table: Called with the table so far after every observation (before the first
        update: of each observer) and before every checkpoint, such as to write it where
        others look at it; with the whole one where the run is complete already.

    Yields:
      The progress after each checkpoint, and that of a run that is already complete.
      Its state is taken over by the next step: copy what should outlive it.

    Raises:
      NonFiniteError: If a metric or an observation is not finite. It is found before
        the next checkpoint is written, so those that exist are good.

    Examples:
      >>> def step_fn(total, batch):
      ...     return total + batch, {"loss": total}
      >>> *_, last = train(
      ...     jnp.zeros(()), num_steps=4, step_fn=step_fn, batch_fn=float, save_every=2
      ... )
      >>> float(last.state), last.table["train"]["loss"].tolist()
      (6.0, [0.0, 0.0, 1.0, 3.0])
    """
    found = checkpoints.restore(state) if checkpoints else None
    first, state, table = found or Progress(0, state, {})
    observers = observers or {}
    pending: list[tuple[str, int, Mapping[str, Any]]] = []
    ahead: tuple[State, Mapping[str, Any]] | None = None

    def observe(step: int) -> bool:
        """Whether there was something to observe."""
        nonlocal ahead
        due = [
            name
            for name, observer in observers.items()
            if step == num_steps or observer.is_due(step)
        ]
        for name in due:
            tell(step, f"measuring: {name}")
            numbers, observer = {}, observers[name]
            if not observer.looks_ahead:
                numbers = observer.observe(state)
            elif step < num_steps:
                if ahead is None:
                    tell(step, "the first update is compiled" if step == first else "")
                    # Taken once: the loop goes on with it.
                    ahead = step_fn(state, batch_fn(step))
                    tell(step, f"measuring: {name}")
                numbers = observer.observe(state, *ahead)
            pending.append((name, step, numbers))
            if not step:  # each at once: the next ones have yet to be compiled
                show()
        return bool(due)

    def show() -> None:
        """Hand out the table with all that was measured."""
        flush()
        if on_table:
            on_table(table)

    def flush() -> None:
        nonlocal table
        table = _extended(table, pending, checkpoints)
        pending.clear()

    scale = tokens_per_step, "token"
    with progress("training", num_steps, done=first, unit="updates", scale=scale) as (
        tell
    ):
        if first >= num_steps:
            if on_table:
                on_table(table)
            yield Progress(first, state, table)
        elif not first:
            observe(0)
        for step in range(first, num_steps):
            state, metrics = ahead or step_fn(state, batch_fn(step))
            ahead = None
            pending.append(("train", step, metrics))
            done = step + 1
            is_observed = observe(done)
            is_saved = done % save_every == 0 or done == num_steps
            if is_saved or is_observed or done % flush_every == 0:
                flush()
                loss = table["train"]["loss"][-flush_every:].mean()
                tell(done, f"{loss:.3f} nats/token")
            if on_table and (is_saved or is_observed):
                on_table(table)
            if is_saved:
                if checkpoints:
                    checkpoints.save(Progress(done, state, table))
                yield Progress(done, state, table)


def _extended(
    table: Table,
    pending: list[tuple[str, int, Mapping[str, Any]]],
    checkpoints: Checkpoints | None,
) -> Table:
    """The table with the pending measurements, all of them finite."""
    table = dict(table)
    by_series: dict[str, list[dict[str, Any]]] = {}
    measured = jax.device_get(pending)
    for name, step, numbers in measured:
        for quantity, value in numbers.items():
            if not np.isfinite(value).all():
                raise NonFiniteError(
                    f"At step {step}: {quantity} ({name}) is {_not_finite(value)}, not "
                    f"finite. {_advice(table, measured, checkpoints)}"
                )
        if numbers:
            by_series.setdefault(name, []).append({"step": step, **numbers})
    for name, rows in by_series.items():
        new = {
            quantity: np.stack([row[quantity] for row in rows]) for quantity in rows[0]
        }
        old = table.get(name)
        table[name] = new if old is None else jax.tree.map(_joined, old, new)
    return table


def _joined(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.concatenate([old, new])


def _not_finite(value: Any) -> str:
    """The first such number, and how many there are."""
    value = np.asarray(value)
    wrong = value[~np.isfinite(value)]
    count = f" in {wrong.size} of {value.size} places" if value.size > 1 else ""
    return f"{wrong[0]}{count}"


def _advice(
    table: Table,
    measured: list[tuple[str, int, Mapping[str, Any]]],
    checkpoints: Checkpoints | None,
) -> str:
    """What to do: a rate has no part in what is there before the first update."""
    first = [numbers["loss"] for name, step, numbers in measured if name == "train"]
    if "train" in table:
        first = table["train"]["loss"]
    if len(first) and not np.isfinite(first[0]):
        return (
            "It is so before the first update: the parameters that the run starts from "
            "or its rows are the reason, not the learning rate."
        )
    return f"{_last_good(checkpoints)} A lower learning rate may help."


def _last_good(checkpoints: Checkpoints | None) -> str:
    step = checkpoints.newest_step() if checkpoints else None
    if checkpoints is None or step is None:
        return "There is no checkpoint yet."
    return f"The last good checkpoint is that of step {step} in {checkpoints.folder}."
