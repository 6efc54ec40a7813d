"""What a finetuning run records of single tokens besides their log-probs.

Which tokens of the vocabulary moved at each place, and which trained token moved which
watched one: what the probe browser of its page shows.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.equation import preconditioner
from ldjax.equation.account import Account, StepState
from ldjax.equation.log_probs import token_log_probs
from ldjax.equation.path import Nodes, difference, path_of, widened_for
from ldjax.equation.sequences import ApplyFn, LossFn, is_sequences
from ldjax.equation.spaces import cast_like
from ldjax.equation.subset import trained_of
from ldjax.files.whole import whole_file
from ldjax.precision import exact_products, watched
from ldjax.runs.loop import Observer
from ldjax.watch.probes import ProbeSet

__all__ = ["TokenMaps", "moved_tokens", "token_map_observer"]

#: Tokens that are named at each place as having gained, and as having lost.
TOP = 5


def moved_tokens(
    apply_fn: ApplyFn,
    before: Any,
    after: Any,
    tracked: ProbeSet,
    *,
    probe_batch_size: int,
) -> dict[str, np.ndarray]:
    """The tokens whose probability moved most at each tracked token's place.

    By change of probability: by that of the log-prob they would be tokens that the
    model never says.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      before: Parameters at the start.
      after: Parameters at the end.
      tracked: What is watched.
      probe_batch_size: Most probes that are computed at a time.

    Returns:
      For `tokens.npz`: of each batch `moved_ids`, and their log-probs `moved_before`
      and `moved_after`, `[probe, pos, 2 TOP]`.
    """
    apply_fn = watched(apply_fn)

    @jax.jit
    def moved(before: Any, after: Any, batch: Any) -> dict[str, Any]:
        old, new = (jax.nn.log_softmax(apply_fn(p, batch)) for p in (before, after))
        # Not a difference of probabilities, in which a small move of a likely token
        # is lost.
        gain = jnp.exp(old) * jnp.expm1(new - old)
        top = min(TOP, gain.shape[-1])
        ids = jnp.concatenate(
            [jax.lax.top_k(sign * gain, top)[1] for sign in (1, -1)], axis=-1
        )
        at = functools.partial(jnp.take_along_axis, indices=ids, axis=-1)
        return {"ids": ids, "before": at(old), "after": at(new)}

    arrays = {}
    for i, (_, batch) in enumerate(tracked.batches):
        in_slices = _slices(batch, probe_batch_size)
        found = [jax.device_get(moved(before, after, part)) for part in in_slices]
        for name in found[0]:
            rows = [part[name] for part in found]
            arrays[f"moved_{name}_{i}"] = np.concatenate(rows)
    return arrays


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TokenMaps:
    r"""What each token of an update does to each watched token.

    .. math:: T_{m,l} = -\nabla_\theta \log\pi(y_m) \cdot P J_l^\top G_l

    The gradient of the log-probs is taken at the start of the update, or averaged over
    nodes on its way, so that the map sums to what the gradient's own part really did.

    One backward pass through its own row for each token `l` of the update, which says
    how it moves the parameters. Then one through its own row for each watched token
    `m`, for all moves that are kept; or, where fewer are kept than a row has tokens,
    one forward-mode pass through the probes for each move. (As
    `StepDecomposition.token_map`, which knows no rows and does each pass through all of
    them.)

    Attributes:
      apply_fn: `(params, sequences) -> logits` of what is trained.
      loss_fn: `(logits, batch) -> scalar`.
      optimizer: An optax transformation that acts element by element.
      watch_fn: `(params, sequences) -> logits` of what is watched.
      where: Which parameters are trained; by default all.
      nodes: Where on the way of the update the log-probs are differentiated, as in
        `ldjax.make_step`; None for its start. Each costs as much.
      batch_size: Tokens that are differentiated at a time, each a copy of the
        parameters.
      kept_bytes: Memory for the moves that are kept; at least `batch_size` of them are.
    """

    apply_fn: ApplyFn
    loss_fn: LossFn
    optimizer: Any
    watch_fn: ApplyFn
    where: Any = None
    nodes: Nodes = None
    batch_size: int
    kept_bytes: int

    def __call__(
        self, state: Any, update: Any, probes: Sequence[Any]
    ) -> dict[str, list[np.ndarray]]:
        """The maps of one update.

        Args:
          state: The state before the update.
          update: Its batch.
          probes: Batches of watched sequences.

        Returns:
          By side of the update, for each batch of probes `[probe, pos, row,
          update_pos]` in nats. Summed over the update these are the own part of the
          step's prediction, `-A K_P G`, or with nodes that of the integrated change:
          the parts that are its sides, of `ldjax.StepComparison`. (At Adam's first step
          `P` is `1 / |g|`: where the gradients of the two sides of a pair cancel, what
          a token of one side does is known to about 1e-3 in float32; their sum to
          1e-5.)
        """
        P, residual = _terms(self, state, update)
        way = None if self.nodes is None else _way(self, state, update)
        sides, G = _sides(update), _sides(residual)
        bytes_of_one = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
        size = max(1, self.kept_bytes // (self.batch_size * bytes_of_one))
        batches = [
            (name, tokens)
            for name, side in sides.items()
            for tokens in _tokens(np.asarray(side.mask), self.batch_size)
        ]
        maps = {
            name: [np.zeros((*p.mask.shape, *side.mask.shape)) for p in probes]
            for name, side in sides.items()
        }
        for start in range(0, len(batches), size):
            those = batches[start : start + size]
            each = [
                _moves(self.apply_fn, state.params, P, sides[n], G[n], *of_n)
                for n, of_n in those
            ]
            moved = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each)
            del each  # as large as all of `moved`
            for i, probe in enumerate(probes):
                shares = self._effects(state.params, way, moved, probe)
                for (name, (rows, places)), share in zip(
                    those, np.split(shares, len(those), axis=-1), strict=True
                ):
                    maps[name][i][:, :, rows, places] = share
        return maps

    def _effects(self, params: Any, way: Any, moved: Any, probe: Any) -> np.ndarray:
        """What the moves do to a batch of probes, `[probe, pos, token]`."""
        mask = np.asarray(probe.mask)
        num = len(jax.tree.leaves(moved)[0])
        if num < mask.shape[1]:
            return np.asarray(_along(self, params, way, moved, probe))
        shares = np.zeros((*mask.shape, num))
        for rows, places in _tokens(mask, self.batch_size):
            shares[rows, places] = _against(
                self, params, way, moved, probe, rows, places
            )
        return shares


@functools.partial(jax.jit, static_argnums=0)
def _terms(how: TokenMaps, state: Any, update: Any) -> tuple[Any, Any]:
    """The preconditioner, and the residual of each side."""

    def logits_of(params: Any) -> Any:
        of = functools.partial(how.apply_fn, params)
        return jax.tree.map(of, update, is_leaf=is_sequences)

    def loss_of(params: Any) -> Any:
        return how.loss_fn(logits_of(params), update)

    loss, gradient = jax.value_and_grad(loss_of)(state.params)
    P = preconditioner(
        how.optimizer,
        gradient,
        state.opt_state,
        state.params,
        where=how.where,
        value=loss,
    )
    return P, jax.grad(lambda z: how.loss_fn(z, update))(logits_of(state.params))


@functools.partial(jax.jit, static_argnums=0)
def _way(how: TokenMaps, state: Any, update: Any) -> Any:
    """By how much the update changes the parameters as they are stored."""
    account = Account.checked(
        how.apply_fn, how.loss_fn, how.optimizer, parts=None, where=how.where
    )
    training = StepState(state.params, state.opt_state, state.step, state.loss)
    new_state, _ = account.trainer.train(training, update)
    return difference(new_state.params, state.params)


@functools.partial(jax.jit, static_argnums=0)
def _moves(
    apply_fn: ApplyFn, params: Any, P: Any, side: Any, G: Any, rows: Any, places: Any
) -> Any:
    """What single tokens of a side do to the parameters, `[token, ...]`."""

    def move(row: Any, place: Any) -> Any:
        example = jax.tree.map(lambda leaf: leaf[row][None], side)
        of_place = jnp.arange(G.shape[1])[:, None] == place
        _, pullback = jax.vjp(lambda p: apply_fn(p, example), params)
        (gradient,) = pullback(jnp.where(of_place, G[row], 0)[None])
        return jax.tree.map(lambda scale, g: -scale * g, P, gradient)

    return jax.vmap(move)(rows, places)


def _log_probs(watch_fn: ApplyFn, params: Any, probe: Any) -> Any:
    logits = watched(watch_fn)(params, probe)
    return token_log_probs(logits, probe.targets, probe.mask)


def _resolved(how: TokenMaps, params: Any, probe: Any) -> Any:
    """Parameters between which there are others, if nodes are on the way."""
    if how.nodes is None:
        return params
    trained, whole = trained_of(params, how.where)
    fn = lambda p: _log_probs(how.watch_fn, whole(p), probe)
    return whole(widened_for(fn, trained))


@functools.partial(jax.jit, static_argnums=0)
def _along(how: TokenMaps, params: Any, way: Any, moved: Any, probe: Any) -> Any:
    """What the moves do to a batch of probes, `[probe, pos, token]`."""
    of_params = functools.partial(_log_probs, how.watch_fn, probe=probe)
    params = _resolved(how, params, probe)

    def pushforward(params: Any) -> Any:
        along = lambda move: jax.jvp(of_params, (params,), (move,))[1]
        return jax.vmap(along, out_axes=-1)(cast_like(moved, params))

    return path_of(how.nodes).mean(pushforward, params, way)


@functools.partial(jax.jit, static_argnums=0)
def _against(
    how: TokenMaps,
    params: Any,
    way: Any,
    moved: Any,
    probe: Any,
    rows: Any,
    places: Any,
) -> Any:
    """What the moves do to single tokens of a batch of probes, `[m, token]`."""

    def slopes(params: Any) -> Any:
        def slope(row: Any, place: Any) -> Any:
            example = jax.tree.map(lambda leaf: leaf[row][None], probe)
            of_params = lambda p: _log_probs(how.watch_fn, p, example)[0, place]
            return jax.grad(of_params)(params)

        return jax.vmap(slope)(rows, places)

    params = _resolved(how, params, probe)
    averaged = path_of(how.nodes).mean(slopes, params, way)
    with exact_products():
        products = jax.tree.map(
            lambda a, b: a.reshape(len(a), -1) @ b.reshape(len(b), -1).T,
            averaged,
            cast_like(moved, params),
        )
    return sum(jax.tree.leaves(products))


def token_map_observer(
    token_maps: TokenMaps,
    tracked: ProbeSet,
    batch_fn: Callable[[int], Any],
    *,
    folder: Path,
    steps: set[int],
    probe_batch_size: int,
) -> Observer:
    """Writes the token maps of some updates, `STEP.npz` for each.

    In it are, for each side of the update, its `targets` and `mask`, and the `map` of
    each batch of tracked probes.

    Args:
      token_maps: How they are computed.
      tracked: What is watched.
      batch_fn: The batch of each step.
      folder: Where to.
      steps: Of the updates, counted from 0.
      probe_batch_size: Most probes that are computed at a time.

    Returns:
      An observer with nothing for the table, since updates differ in their shapes.
    """

    def observe(state: Any) -> dict[str, Any]:
        step = int(state.step)
        if step not in steps:  # the end
            return {}
        update = batch_fn(step)
        arrays: dict[str, Any] = {}
        for side, sequences in _sides(update).items():
            arrays[f"targets_{side}"] = np.asarray(sequences.targets)
            arrays[f"mask_{side}"] = np.asarray(sequences.mask)
        # One array for each batch of `tokens.npz`, from slices that fit the memory.
        slices = [_slices(batch, probe_batch_size) for _, batch in tracked.batches]
        maps = token_maps(state, update, [part for parts in slices for part in parts])
        for side, of_slices in maps.items():
            rest = iter(of_slices)
            for i, parts in enumerate(slices):
                rows = np.concatenate([next(rest) for _ in parts])
                arrays[f"map_{i}_{side}"] = rows.astype(np.float32)
        folder.mkdir(exist_ok=True)
        path = folder / f"{step:06d}.npz"
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        return {}

    return Observer(observe, steps.__contains__)


def _tokens(mask: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows and places of the tokens that count, always so many at a time.

    So there is one program; the last token comes again and again.
    """
    tokens = np.argwhere(mask)
    for start in range(0, len(tokens), size):
        yield tokens[np.minimum(start + np.arange(size), len(tokens) - 1)].T


def _slices(batch: Any, size: int) -> list[Any]:
    """Rows of a batch, so many at a time."""
    return [
        jax.tree.map(lambda leaf: leaf[start : start + size], batch)  # noqa: B023
        for start in range(0, len(batch.targets), size)
    ]


def _sides(update: Any) -> dict[str, Any]:
    """By name; what has no sides is `update`."""
    return dict(update) if isinstance(update, dict) else {"update": update}
