"""The log-probs of what is watched, and what their differences cannot resolve."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax.equation import resolution
from ldjax.equation.account.training import StepState
from ldjax.equation.doors import Door
from ldjax.equation.jacobian import derivatives
from ldjax.equation.resolution import Observed
from ldjax.equation.sequences import Batch, Params, Sequences, in_chunks, like, sides_of

_Name = TypeVar("_Name", bound=Hashable)


class Watcher(NamedTuple):
    """What computes the watched log-probs, with the settings of `ldjax.make_step`."""

    watch_fn: Door
    full_vocab: bool | None
    probe_batch_size: int | None

    def observe(self, params: Params, chunk: Sequences) -> Observed:
        """Watched log-probs of some rows, and their rounding."""
        logits = self.watch_fn(params, chunk)
        full_vocab = self.full_vocab
        if full_vocab is None:
            full_vocab = bool(jnp.issubdtype(chunk.tokens.dtype, jnp.floating))
        return resolution.observe(logits, chunk, full_vocab=full_vocab)

    def over(self, fn: Callable[[Sequences], Any], probe: Batch) -> Any:
        """A function of rows on every side of the probe, so many rows at a time."""
        results = [
            in_chunks(fn, side, self.probe_batch_size)
            for side in sides_of(probe).values()
        ]
        return jax.tree.map(lambda *leaves: like(probe, leaves), *results)

    def log_probs(self, params: Params, probe: Batch) -> Any:
        """Watched log-probs."""
        return self.over(lambda chunk: self.observe(params, chunk).log_probs, probe)

    def follow(
        self,
        trained: Params,
        whole: Callable[[Params], Params],
        directions: Mapping[_Name, Params],
        chunk: Sequences,
    ) -> tuple[Observed, dict[_Name, Array]]:
        """What is watched of some rows, and its derivative along each direction."""

        def watch_fn(p: Params) -> tuple[Array, Array]:
            observed = self.observe(whole(p), chunk)
            return observed.log_probs, observed.unit

        *observed, changes = derivatives(watch_fn, trained, directions)
        return Observed(*observed), changes

    def noise(self, state: StepState, probe: Batch, observed: Observed) -> Array:
        """The rounding noise: what the state knows, or measured anew.

        Args:
          state: Before the step.
          probe: What is watched.
          observed: At the state's parameters.
        """

        def measured() -> Array:
            sides = [*sides_of(probe).values()]
            together = [side.rows_per_prompt for side in sides]
            rows = list(map(resolution.spread_rows, sides, together))
            found = zip(*map(jax.tree.leaves, observed), strict=True)
            noises = [
                resolution.noise(log_probs, other, unit)
                for (log_probs, unit), other in zip(
                    map(resolution.spread_rows, found, together),
                    self._perturbed(state.params, rows),
                    strict=True,
                )
            ]
            return jnp.max(jnp.stack(noises)).astype(jnp.float32)

        if state.noise is None:
            return measured()
        known = state.noise.astype(jnp.float32)
        is_due = jnp.isnan(known) | (state.step % resolution.NOISE_EVERY == 0)
        return jax.lax.cond(is_due, measured, lambda: known)

    def _perturbed(self, params: Params, sides: list[Sequences]) -> list[Array]:
        """What is watched, at parameters that are rounded another way."""
        one_row = jax.tree.map(lambda leaf: leaf[:1], sides[0])
        eps = resolution.compute_eps(
            lambda p: self.observe(p, one_row).log_probs, params
        )
        return self.log_probs(resolution.perturbed(params, eps), sides)
