r"""What is watched during finetuning: typed responses, and what is measured on each.

A probe is one response of one type to one prompt, read under teacher forcing. Every
quantity is computed on the probe's own context (in the paper's code the greedy log-prob
was overwritten by the last response type); `ldjax.theory.quantities` defines them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ldjax.data.batches import Example, bucketed_batches, to_sequences
from ldjax.equation import resolution
from ldjax.equation.doors import Door, check_params
from ldjax.equation.log_probs import token_log_probs
from ldjax.equation.sequences import ApplyFn, Sequences, check_sequences
from ldjax.precision import watched
from ldjax.runs.devices import fill_up, shard
from ldjax.theory.quantities import sequence_quantities, token_quantities

__all__ = [
    "Probe",
    "ProbeSet",
    "make_change_fn",
    "make_floor_fn",
    "make_observe_fn",
    "make_slope_fn",
    "shard_probes",
]


class Probe(NamedTuple):
    """A watched response.

    Attributes:
      prompt_name: The prompt, unique in its run, such as `"train/0017"`.
      type: The response type, such as `"chosen"`.
      example: Token ids of prompt and response.

    Examples:
      >>> Probe("train/0017", "chosen", Example((5, 3), (7, 0))).type
      'chosen'
    """

    prompt_name: str
    type: str
    example: Example


class ProbeSet(NamedTuple):
    """Probes as padded batches.

    Attributes:
      probes: In the order in which results are given.
      batches: The places in `probes` of a batch's first rows (-1 of one that fills
        up), and the batch.

    Examples:
      >>> probes = [Probe("train/0", "chosen", Example((5, 3), (7, 0)))]
      >>> ProbeSet.of(probes, max_length=8, batch_size=2).batches[0][1].tokens.shape
      (2, 7)
    """

    probes: tuple[Probe, ...]
    batches: tuple[tuple[np.ndarray, Sequences], ...]

    @classmethod
    def of(
        cls, probes: Sequence[Probe], *, max_length: int, batch_size: int | None
    ) -> "ProbeSet":
        """Probes in batches of similar length.

        Args:
          probes: In any order.
          max_length: The limit of prompt and response together, in tokens.
          batch_size: Rows of a batch; None for one batch for each bucket.

        Returns:
          The set; one shape of batch for each bucket of lengths.

        Raises:
          TypeError: If an example is no row of integers.
          ValueError: If an example is empty, too long or holds a negative id; names the
            probe. If `batch_size` is not positive.
        """
        for probe in probes:
            try:
                probe.example.check(max_length)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(_of(probe, error)) from None
        examples = [probe.example for probe in probes]
        batches = bucketed_batches(
            examples, max_length=max_length, batch_size=batch_size
        )
        return cls(
            tuple(probes),
            tuple((np.asarray(places), batch) for places, batch in batches),
        )

    def in_slices(self, size: int) -> "ProbeSet":
        """These probes in batches of fewer rows, which take less memory.

        Args:
          size: Most rows of a batch.

        Examples:
          >>> probes = [Probe("train/0", "chosen", Example((5, 3), (7, 0)))] * 3
          >>> probes = ProbeSet.of(probes, max_length=8, batch_size=None)
          >>> [len(places) for places, _ in probes.in_slices(2).batches]
          [2, 1]
        """
        return ProbeSet(
            self.probes,
            tuple(
                (
                    places[start : start + size],
                    jax.tree.map(lambda leaf: leaf[start : start + size], batch),  # noqa: B023
                )
                for places, batch in self.batches
                for start in range(0, len(places), size)
            ),
        )

    def gather(self, per_batch: Sequence[Any]) -> Any:
        """One result per probe, in order, from pytrees of `[batch, ...]` arrays."""
        of_rows = [places for places, _ in self.batches]
        order = np.argsort(np.concatenate([at[at >= 0] for at in of_rows]))

        def gathered(*leaves: Any) -> np.ndarray:
            pairs = zip(leaves, of_rows, strict=True)
            rows = [np.asarray(leaf)[: len(at)][at >= 0] for leaf, at in pairs]
            return np.concatenate(rows)[order]

        return jax.tree.map(gathered, *per_batch)


def make_observe_fn(
    apply_fn: ApplyFn, probes: ProbeSet
) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function that measures every probe.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      probes: The watched responses.

    Returns:
      From parameters to the numbers of `sequence_quantities`, `[probe]`. Compiled once
      for each shape of batch.

    Raises:
      TypeError: On a call, if parameters are no numbers, or what `apply_fn` returns is
        no array of logits, float32 or wider.
      ValueError: On a call, if parameters were donated; if the logits are not `[batch,
        pos, vocab]`; if a probe has an id that is not in the model's vocabulary or
        more positions than it learned.

    Examples:
      >>> probe = Probe("train/0", "chosen", Example((1, 2), (3,)))
      >>> probes = ProbeSet.of([probe], max_length=4, batch_size=1)
      >>> observe = make_observe_fn(lambda w, s: w + jnp.zeros((1, 3, 5)), probes)
      >>> observe(jnp.zeros(()))["log_prob"]
      array([-1.609...]...)
    """
    apply_fn = Door(watched(apply_fn))

    @jax.jit
    def of_batch(params: Any, batch: Sequences) -> dict[str, Any]:
        logits = apply_fn(params, batch)
        tokens = token_quantities(logits, batch.targets, batch.mask)
        return sequence_quantities(tokens, batch.mask, vocab_size=logits.shape[-1])

    def observe(params: Any) -> dict[str, np.ndarray]:
        _check(apply_fn, of_batch, probes, params=params)
        return probes.gather([of_batch(params, batch) for _, batch in probes.batches])

    return observe


def make_change_fn(
    apply_fn: ApplyFn, probes: ProbeSet
) -> Callable[[Any, Any], dict[str, np.ndarray]]:
    r"""A function that explains what a move of the parameters did to every probe.

    .. math:: \text{predicted} = \nabla_\theta \log\pi(y \mid x) \cdot
              (\theta' - \theta), \qquad
              \text{measured} = \log\pi_{\theta'} - \log\pi_\theta

    For the parameters before and after one optimizer step these are the `predicted` and
    the `measured` of `ldjax.make_step`, for as many probes as one likes.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      probes: The watched responses.

    Returns:
      `(params, new_params) -> {"predicted": [probe], "measured": [probe]}`, sums over
      tokens, in nats.

    Raises:
      TypeError: On a call, as `make_observe_fn`, and if parameters are no floats.
      ValueError: On a call, as `make_observe_fn`, and if the two parameters differ in
        structure, shapes or types.

    Examples:
      >>> probe = Probe("train/0", "chosen", Example((1, 2), (3,)))
      >>> probes = ProbeSet.of([probe], max_length=4, batch_size=1)
      >>> apply_fn = lambda w, s: jnp.zeros((1, 3, 5)).at[:, :, 3].set(w)
      >>> change = make_change_fn(apply_fn, probes)
      >>> change(jnp.array(0.0), jnp.array(0.1))["predicted"]
      array([0.08]...)
    """
    apply_fn = Door(watched(apply_fn))

    @jax.jit
    def of_batch(params: Any, new_params: Any, batch: Sequences) -> dict[str, Any]:
        def log_probs_of(p: Any) -> Array:
            logits = apply_fn(p, batch)
            return token_log_probs(logits, batch.targets, batch.mask)

        move = jax.tree.map(jnp.subtract, new_params, params)
        old, predicted = jax.jvp(log_probs_of, (params,), (move,))
        measured = log_probs_of(new_params) - old  # per token first: less is lost
        return {"predicted": predicted.sum(-1), "measured": measured.sum(-1)}

    def change(params: Any, new_params: Any) -> dict[str, np.ndarray]:
        check_params(params)
        check_params(new_params, "new_params", like=params)
        _check(apply_fn, of_batch, probes, params=params, new_params=new_params)
        return probes.gather(
            [of_batch(params, new_params, batch) for _, batch in probes.batches]
        )

    return change


def make_slope_fn(
    apply_fn: ApplyFn, probes: ProbeSet
) -> Callable[[Any, Any, float], np.ndarray]:
    r"""A function to the derivative of every probe at a place along a move.

    .. math:: \nabla_\theta \log\pi(y \mid x)\big|_{\theta + \tau \Delta} \cdot \Delta,
              \qquad \Delta = \theta' - \theta

    At :math:`\tau = 0` this is the `predicted` of `make_change_fn`; its integral over
    :math:`0 \le \tau \le 1` is the `measured`.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      probes: The watched responses.

    Returns:
      `(params, new_params, place) -> [probe]`, sums over tokens, in nats; `place` is
      :math:`\tau`. Compiled once for each shape of batch, whatever the place.

    Raises:
      TypeError: On a call, as `make_change_fn`.
      ValueError: On a call, as `make_change_fn`.

    Examples:
      >>> probe = Probe("train/0", "chosen", Example((1, 2), (3,)))
      >>> probes = ProbeSet.of([probe], max_length=4, batch_size=1)
      >>> apply_fn = lambda w, s: jnp.zeros((1, 3, 5)).at[:, :, 3].set(w)
      >>> slope = make_slope_fn(apply_fn, probes)
      >>> slope(jnp.array(0.0), jnp.array(0.1), 0.5)
      array([0.079...]...)
    """
    apply_fn = Door(watched(apply_fn))

    @jax.jit
    def of_batch(params: Any, new_params: Any, place: Array, batch: Sequences) -> Array:
        def log_probs_of(p: Any) -> Array:
            logits = apply_fn(p, batch)
            return token_log_probs(logits, batch.targets, batch.mask)

        move = jax.tree.map(jnp.subtract, new_params, params)
        there = jax.tree.map(lambda p, m: p + place.astype(p.dtype) * m, params, move)
        return jax.jvp(log_probs_of, (there,), (move,))[1].sum(-1)

    def slope(params: Any, new_params: Any, place: float) -> np.ndarray:
        check_params(params)
        check_params(new_params, "new_params", like=params)
        at = {"params": params, "new_params": new_params, "place": jnp.asarray(place)}
        _check(apply_fn, of_batch, probes, **at)
        return probes.gather(
            [of_batch(*at.values(), batch) for _, batch in probes.batches]
        )

    return slope


def make_floor_fn(
    apply_fn: ApplyFn, probes: ProbeSet
) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function to what rounding can make of the change of every probe.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      probes: The watched responses.

    Returns:
      `params -> {"floor": [probe]}`, sums over tokens, in nats: that of
      `ldjax.StepComparison`, its noise measured at these parameters on all probes. Two
      forward passes.

    Raises:
      TypeError: On a call, as `make_observe_fn`, and if parameters are no floats.
      ValueError: On a call, as `make_observe_fn`.

    Examples:
      >>> probe = Probe("train/0", "chosen", Example((1, 2), (3,)))
      >>> probes = ProbeSet.of([probe], max_length=4, batch_size=1)
      >>> apply_fn = lambda w, s: jnp.zeros((1, 3, 5)).at[:, :, 3].set(w)
      >>> bool(make_floor_fn(apply_fn, probes)(jnp.array(1.0))["floor"][0] > 0)
      True
    """
    apply_fn = Door(watched(apply_fn))

    def evaluate(params: Any, batch: Sequences) -> resolution.Observed:
        return resolution.observe(apply_fn(params, batch), batch)

    @jax.jit
    def of_batch(params: Any, batch: Sequences) -> dict[str, Array]:
        eps = resolution.compute_eps(evaluate, params, batch)
        log_probs, units = evaluate(params, batch)
        others, _ = evaluate(resolution.perturbed(params, eps), batch)
        noise = resolution.noise(log_probs, others, units)
        sums = jnp.where(batch.mask, units, 0).sum(-1)
        return {"unit": sums, "noise": jnp.broadcast_to(noise, sums.shape)}

    def floor(params: Any) -> dict[str, np.ndarray]:
        check_params(params)
        _check(apply_fn, of_batch, probes, params=params)
        found = probes.gather([of_batch(params, batch) for _, batch in probes.batches])
        return {"floor": resolution.floor(found["unit"], found["noise"].max())}

    return floor


def shard_probes(probes: ProbeSet, mesh: Mesh) -> ProbeSet:
    """A probe set whose batches are filled up and divided over the devices.

    Args:
      probes: The watched responses.
      mesh: The mesh of devices (`data_mesh`).

    Returns:
      The same probes for `make_observe_fn` and `make_change_fn`,
      which leave out the rows that fill up.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> from ldjax.runs.devices import data_mesh
      >>> probes = [Probe("train/0", "chosen", Example((5, 3), (7, 0)))] * 3
      >>> probes = ProbeSet.of(probes, max_length=8, batch_size=None)
      >>> sharded = shard_probes(probes, data_mesh())
      >>> len(sharded.batches[0][1].tokens) % jax.device_count()
      0
    """
    return probes._replace(
        batches=tuple(
            (places, shard(fill_up(batch, mesh), mesh))
            for places, batch in probes.batches
        )
    )


def _check(door: Door, program: Any, probes: ProbeSet, **params: Any) -> None:
    """Refuse what cannot be measured; an id that is unknown by its probe."""
    for places, batch in probes.batches:
        try:
            door.check(program, **params, probes=batch)
        except ValueError:
            for place in places[places >= 0]:
                alone = to_sequences([probes.probes[place].example])
                try:
                    check_sequences(alone, name="probes", **door.limits)
                except ValueError as error:
                    raise ValueError(_of(probes.probes[place], error)) from None
            raise


def _of(probe: Probe, error: Exception) -> str:
    return f"Of the probe {probe.prompt_name!r} ({probe.type!r}): {error}"
