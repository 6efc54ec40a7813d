r"""What is watched during finetuning: typed responses, and what is measured on each.

A probe is one response of one type to one prompt, read under teacher forcing. The
definitions below follow section 9 of the paper where its code is sound, and repair it
where it is not: every quantity is computed on the probe's own context (there the
greedy log-prob was overwritten by the last response type), the complement of the
greedy token is finite also where that token's probability rounds to one, masked
positions are left out before any logarithm, and norms over a sequence are root mean
squares over its tokens, so that they are Frobenius norms (there the square of a mean).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ldjax import _resolution
from ldjax._doors import Door, check_params
from ldjax.batching import Example, bucketed_batches
from ldjax.log_probs import Sequences, check_sequences, token_log_probs

__all__ = [
    "Probe",
    "ProbeSet",
    "TokenQuantities",
    "make_change_fn",
    "make_floor_fn",
    "make_observe_fn",
    "sequence_quantities",
    "token_quantities",
]

ApplyFn = Callable[[Any, Sequences], Any]


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
      batches: The places in `probes` of a batch's first rows, and the batch.

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
          max_length: Of the longest prompt and response together, in tokens.
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
        """The same probes in batches of fewer rows, which take less memory.

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
        order = np.argsort(np.concatenate([places for places, _ in self.batches]))
        counts = [len(places) for places, _ in self.batches]

        def gathered(*leaves: Any) -> np.ndarray:
            pairs = zip(leaves, counts, strict=True)
            rows = [np.asarray(leaf)[:count] for leaf, count in pairs]
            return np.concatenate(rows)[order]

        return jax.tree.map(gathered, *per_batch)


class TokenQuantities(NamedTuple):
    r"""What is measured at each token of a response; zero where masked.

    With :math:`\pi` the predictive distribution at the token's position.

    Attributes:
      log_prob: :math:`\log \pi(y)` of the response's own token, in nats.
      argmax_log_prob: :math:`\log \max_v \pi(v)`: of the token greedy decoding would
        take after this prefix, the paper's `y*`, in nats.
      argmax_complement: :math:`\log(1 - \max_v \pi(v))`, in nats; from the logits of
        the other tokens, so that it is finite.
      adaptation_square: :math:`\|A\|_F^2 = V - 2 + V \|\pi\|_2^2`.
      prob_norm: :math:`\|\pi\|_2`.
      residual_square: :math:`\|\pi - e_y\|_2^2`.
      energy: :math:`1 - \pi(y)`.
      entropy: :math:`-\sum_v \pi(v) \log \pi(v)`, in nats.

    References:
      Ren & Sutherland 2025, appendix C, equations 27 to 31 for the norm of `A`.

    Examples:
      >>> one = jnp.ones((1, 1), int)
      >>> token_quantities(jnp.zeros((1, 1, 4)), one, one > 0).argmax_complement
      Array([[-0.287...]], dtype=...)
    """

    log_prob: Float[Array, "*batch pos"]
    argmax_log_prob: Float[Array, "*batch pos"]
    argmax_complement: Float[Array, "*batch pos"]
    adaptation_square: Float[Array, "*batch pos"]
    prob_norm: Float[Array, "*batch pos"]
    residual_square: Float[Array, "*batch pos"]
    energy: Float[Array, "*batch pos"]
    entropy: Float[Array, "*batch pos"]


def token_quantities(
    logits: Float[Array, "*batch pos vocab"],
    targets: Int[Array, "*batch pos"],
    mask: Bool[Array, "*batch pos"],
) -> TokenQuantities:
    """Everything that is measured at each token.

    Args:
      logits: Unnormalised log-probabilities, in nats; at least two tokens.
      targets: The response's token at each position.
      mask: True where a position is scored.

    Returns:
      Arrays like `targets`.

    Examples:
      >>> one = jnp.ones((1, 1), int)
      >>> certain = jnp.array([[[0.0, 200.0, 0.0]]])
      >>> found = token_quantities(certain, one, one > 0)
      >>> found.argmax_log_prob, found.argmax_complement.round(2)
      (Array([[0.]], dtype=...), Array([[-199.31]], dtype=...))
    """
    vocab_size = logits.shape[-1]
    logits = jnp.where(mask[..., None], logits, 0)
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    log_prob = token_log_probs(logits, targets, mask)
    is_top = jax.nn.one_hot(logits.argmax(axis=-1), vocab_size, dtype=bool)
    others = jnp.where(is_top, -jnp.inf, log_probs)
    square = (probs**2).sum(axis=-1)
    # Sums over the other labels: near certainty `1 - pi(y)` is a difference of ones.
    is_target = jax.nn.one_hot(targets, vocab_size, dtype=bool)
    other_probs = jnp.where(is_target, 0, probs)
    energy = other_probs.sum(axis=-1)
    entropy = -(probs * jnp.where(probs > 0, log_probs, 0)).sum(axis=-1)
    quantities = TokenQuantities(
        log_prob=log_prob,
        argmax_log_prob=log_probs.max(axis=-1),
        argmax_complement=jax.nn.logsumexp(others, axis=-1),
        adaptation_square=vocab_size - 2 + vocab_size * square,
        prob_norm=jnp.sqrt(square),
        residual_square=(other_probs**2).sum(axis=-1) + energy**2,
        energy=energy,
        entropy=entropy,
    )
    return jax.tree.map(lambda leaf: jnp.where(mask, leaf, 0), quantities)


def sequence_quantities(
    tokens: TokenQuantities, mask: Bool[Array, "batch pos"], *, vocab_size: int
) -> dict[str, Float[Array, " batch"]]:
    r"""The same for whole responses: sums of log-probs, means of the others.

    Args:
      tokens: From `token_quantities`.
      mask: True where a position is scored.
      vocab_size: Number of tokens of the vocabulary.

    Returns:
      By name, one number per response:

      * `log_prob`, `argmax_log_prob`, `argmax_complement`: sums over its tokens, nats;
      * `adaptation_norm`: root mean square over tokens of :math:`\|A\|_F`;
      * `adaptation_norm_published`: :math:`\sqrt{V \bar{n}^2 + V - 2}` with
        :math:`\bar n` the mean of :math:`\|\pi\|_2`, as in the published curves;
      * `residual_norm`: root mean square over tokens of :math:`\|\pi - e_y\|_2`;
      * `energy`, `entropy`: means over tokens;
      * `squeezing_threshold`: mean over tokens of :math:`\|\pi\|_2^2 - \pi(y)`. A small
        step down on `y` alone, with a kernel that is a multiple of the identity, raises
        exactly the labels whose probability is above it.

    Examples:
      >>> mask = jnp.ones((1, 2), bool)
      >>> tokens = token_quantities(jnp.zeros((1, 2, 4)), mask.astype(int), mask)
      >>> sequence_quantities(tokens, mask, vocab_size=4)["log_prob"]
      Array([-2.772...], dtype=...)
    """
    count = jnp.maximum(mask.sum(axis=-1), 1)  # a row that fills up a batch has none

    def mean(values: Array) -> Array:
        return values.sum(axis=-1) / count

    # |p|^2 - p_y; of a likely token from the other labels, not a difference of ones.
    is_likely = tokens.energy < 0.5
    from_others = tokens.residual_square - tokens.energy
    from_own = tokens.prob_norm**2 - jnp.exp(tokens.log_prob)
    thresholds = jnp.where(is_likely, from_others, from_own)
    return {
        "log_prob": tokens.log_prob.sum(axis=-1),
        "argmax_log_prob": tokens.argmax_log_prob.sum(axis=-1),
        "argmax_complement": tokens.argmax_complement.sum(axis=-1),
        "adaptation_norm": jnp.sqrt(mean(tokens.adaptation_square)),
        "adaptation_norm_published": jnp.sqrt(
            vocab_size * mean(tokens.prob_norm) ** 2 + vocab_size - 2
        ),
        "residual_norm": jnp.sqrt(mean(tokens.residual_square)),
        "energy": mean(tokens.energy),
        "entropy": mean(tokens.entropy),
        "squeezing_threshold": mean(jnp.where(mask, thresholds, 0)),
    }


def make_observe_fn(
    apply_fn: ApplyFn, probes: ProbeSet
) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function that measures every probe.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      probes: What is watched.

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
    apply_fn = Door(apply_fn)

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
      probes: What is watched.

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
    apply_fn = Door(apply_fn)

    @jax.jit
    def of_batch(params: Any, new_params: Any, batch: Sequences) -> dict[str, Any]:
        def log_probs_of(p: Any) -> Array:
            with jax.default_matmul_precision("highest"):
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


def make_floor_fn(
    apply_fn: ApplyFn, probes: ProbeSet
) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function to what rounding can make of the change of every probe.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      probes: What is watched.

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
    apply_fn = Door(apply_fn)

    def evaluate(params: Any, batch: Sequences) -> tuple[Array, Array]:
        with jax.default_matmul_precision("highest"):
            logits = apply_fn(params, batch)
        log_probs = token_log_probs(logits, batch.targets, batch.mask)
        largest = jnp.where(batch.mask, jnp.abs(logits).max(-1), 0)
        return log_probs, _resolution.unit(log_probs, largest)

    @jax.jit
    def of_batch(params: Any, batch: Sequences) -> dict[str, Array]:
        eps = _resolution.compute_eps(evaluate, params, batch)
        log_probs, units = evaluate(params, batch)
        others, _ = evaluate(_resolution.perturbed(params, eps), batch)
        noise = _resolution.noise(log_probs, others, units)
        sums = jnp.where(batch.mask, units, 0).sum(-1)
        return {"unit": sums, "noise": jnp.broadcast_to(noise, sums.shape)}

    def floor(params: Any) -> dict[str, np.ndarray]:
        check_params(params)
        _check(apply_fn, of_batch, probes, params=params)
        found = probes.gather([of_batch(params, batch) for _, batch in probes.batches])
        return {"floor": _resolution.floor(found["unit"], found["noise"].max())}

    return floor


def _check(door: Door, program: Any, probes: ProbeSet, **params: Any) -> None:
    """Refuse what cannot be measured; an id that is unknown by its probe."""
    for places, batch in probes.batches:
        try:
            door.check(program, **params, probes=batch)
        except ValueError:
            for row, place in enumerate(places):
                alone = jax.tree.map(lambda leaf: leaf[row : row + 1], batch)  # noqa: B023
                try:
                    check_sequences(alone, name="probes", **door.limits)
                except ValueError as error:
                    raise ValueError(_of(probes.probes[place], error)) from None
            raise


def _of(probe: Probe, error: Exception) -> str:
    return f"Of the probe {probe.prompt_name!r} ({probe.type!r}): {error}"
