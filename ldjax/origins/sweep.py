r"""The backward sweep over a run, in chunks of responses that are in flight together.

For each chunk the run is gone through once from the end to the start; with the run
itself, made once and once more segment by segment, that is :math:`T` updates made, and
for each chunk :math:`T` updates made and :math:`T` gone back over.
"""

import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.equation import resolution
from ldjax.equation.path import Nodes, Path, path_of
from ldjax.equation.sequences import Sequences
from ldjax.equation.subset import trained_of
from ldjax.files.digests import digest
from ldjax.memory import Bytes
from ldjax.origins.assembly import assembled
from ldjax.origins.kept import Arrays, Kept, on_host
from ldjax.origins.plan import most_probes, sweep_bytes
from ldjax.origins.pull import (
    Adjoint,
    Watch,
    layers_of,
    make_pull_fn,
    moments_of,
)
from ldjax.origins.replay import Replay
from ldjax.origins.table import Ledger
from ldjax.origins.tally import Rows, Tally
from ldjax.origins.trajectory import Responses, Training, Trajectory
from ldjax.progress import progress

__all__ = ["account"]

_UNFINISHED = "unfinished"


def account(
    training: Training,
    trajectory: Trajectory,
    probes: Responses,
    *,
    nodes: Nodes = 3,
    by_token: int = 0,
    probe_batch_size: int | None = None,
    memory_limit: Bytes | None = None,
    folder: str | pathlib.Path | None = None,
) -> Ledger:
    r"""Divide what each response's log-prob changed by over a run among its origins.

    .. math:: \log\pi_{\theta_T} - \log\pi_{\theta_0} = \sum_{t,i} \langle \kappa_t,
              g_{t,i} \rangle + \text{weight decay} + \text{before} + \dots

    with the optimizer's scale factors frozen at the values of each update: momentum is
    paid to the examples that it came from, at the updates that they were trained on
    in. The sum is exact but for `quadrature` (the error of the nodes along an update)
    and `rounding`.

    Args:
      training: How was trained.
      trajectory: The run.
      probes: What is watched.
      nodes: Where along each update the gradients of the log-probs are taken: the
        number of Gauss–Legendre nodes, as `nodes` of `ldjax.make_step`. The
        cost grows with it.
      by_token: Of how many responses, the first ones, each scored token is accounted
        for by itself, for `Ledger.tokens`. The cost of such a response is that of as
        many responses as it has tokens.
      probe_batch_size: Responses (tokens, `by_token`) in flight together; by default as
        many as there is memory for.
      memory_limit: Bytes that may be used; by default those that are free.
      folder: Where the ledger is written, and what goes on there after a kill.
        By default nothing is written, and states are kept in memory.

    Returns:
      The ledger. For each response and update it takes a backward pass of the response
      for each node, a forward pass of it, and a forward-mode pass of the batch.

    Raises:
      MemoryError: If not even one response at a time fits, before anything is made.
      ReplayError: If the run, made again, is another.
      ValueError: If the optimizer's updates cannot be split (names the operation), or
        probes, batches and names do not fit.

    Examples:
      >>> import ldjax, optax
      >>> from ldjax.runs.loop import make_train_step
      >>> apply_fn, adam = lambda w, s: w[s.tokens], optax.adam(0.1)
      >>> training = Training(apply_fn, ldjax.losses.sft, adam)
      >>> init, step = make_train_step(apply_fn, ldjax.losses.sft, adam)
      >>> ids, mask = jnp.array([[1, 2], [2, 0]]), jnp.ones((2, 2), bool)
      >>> rows = Sequences(ids, (ids + 1) % 3, mask)
      >>> run = Trajectory(
      ...     num_steps=4,
      ...     start=init(jnp.zeros((3, 3))),
      ...     step_fn=step,
      ...     batch_fn=lambda step: rows,
      ...     names_of=lambda step: ["train/0", "train/1"],
      ... )
      >>> probes = Responses(("train/0", "train/1"), ("chosen",) * 2, rows)
      >>> account(training, run, probes).sum().select("own", "others").rows()
      [(0.68..., 0.22...), (0.68..., 0.22...)]
    """
    path = path_of(nodes)
    probes = probes.checked()
    if trajectory.num_steps < 1:
        raise ValueError("A ledger is of at least one update; the run has none.")
    rows = Rows.of(trajectory)
    if by_token and rows.places is None:
        raise ValueError("`by_token` needs names of the rows: give `names_of`.")
    watched_rows, owners = probes.by_token(by_token)
    kept = Kept(None if folder is None else pathlib.Path(folder) / _UNFINISHED)
    sweep = _Sweep(training, Replay.of(trajectory, kept), path, rows, by_token > 0)
    size = _begin(
        kept,
        _settings(trajectory, probes, path, by_token),
        probe_batch_size,
        lambda: most_probes(
            len(owners),
            lambda size: sweep.bytes_of(watched_rows, size),
            limit=memory_limit,
        ),
    )
    chunks = _chunks(watched_rows, size)
    total = trajectory.num_steps * (1 + len(chunks))
    with progress("the ledger", total, unit="updates") as tell:
        sweep.replay.forward(lambda done: tell(done, "making the run again"))
        found = []
        for k, chunk in enumerate(chunks):
            before = trajectory.num_steps * (k + 1)
            note = f"going back over it, {k + 1} of {len(chunks)} times"
            found.append(
                sweep.over(f"chunk-{k}", chunk, lambda n: tell(before + n, note))  # noqa: B023
            )
    ledger = assembled(
        _joined(found, owners, len(probes.types)),
        rows,
        probes,
        trajectory,
        nodes=len(path.places),
        by_token=by_token,
        layers=sweep.layers,
        num_parameters=sweep.num_parameters,
    )
    if folder is not None:
        ledger.write(folder)
    kept.clear()
    return ledger


class _Sweep:
    """A run, and what goes back over it."""

    def __init__(
        self,
        training: Training,
        replay: Replay,
        path: Path,
        rows: Rows,
        has_maps: bool,
    ) -> None:
        self.replay = replay
        self._rows, self._has_maps = rows, has_maps
        self._pull = make_pull_fn(training, path)
        watch = Watch.of(training)
        self._observe, self._noise = jax.jit(watch.all), jax.jit(watch.noise)
        self._start = replay.point(replay.trajectory.start)
        batch = replay.trajectory.batch_fn(0)
        self._moments = moments_of(training, self._start, batch)
        self.layers = layers_of(training, self._start.params)
        trained, _ = trained_of(self._start.params, training.where)
        self.num_parameters = sum(map(np.size, jax.tree.leaves(trained)))

    def over(self, name: str, probes: Sequences, tell: Callable[[int], None]) -> Arrays:
        """The sums of some responses, those of a killed sweep gone on with."""
        replay, num_probes = self.replay, len(probes.mask)
        tally = self._tally(num_probes)
        if name in replay.kept:
            adjoint = jax.tree.map(jnp.array, tally.restore(replay.kept.get(name)))
        else:
            adjoint = self._no_adjoint(num_probes)
            tally.begin(self._observe(replay.end.params, probes).log_probs)
        for start in reversed(replay.starts):
            if start >= tally.done:
                continue
            for step, point, new_params in replay.backward(start):
                level = None
                if step % resolution.NOISE_EVERY == 0:
                    level = self._noise(point.params, probes)
                batch = replay.trajectory.batch_fn(step)
                adjoint, paid = self._pull(point, new_params, batch, probes, adjoint)
                tally.add(paid, level)
                tell(replay.trajectory.num_steps - step)
            if replay.kept.lasts:
                replay.kept.put(name, tally.saved(adjoint))
        return tally.arrays | {"floor": tally.floors()}

    def bytes_of(self, probes: Sequences, size: int) -> int:
        """What it takes with so many of these responses in flight."""
        batch = self.replay.trajectory.batch_fn(self._rows.longest)
        chunk = jax.eval_shape(
            lambda: jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:size]), probes)
        )
        adjoint = jax.eval_shape(lambda: self._no_adjoint(size))
        arguments = (self._start, self._start.params, batch, chunk, adjoint)
        sums = Tally.bytes_of(
            self._rows,
            num_probes=len(probes.mask),
            num_layers=len(self.layers),
            has_maps=self._has_maps,
        )
        return sweep_bytes(self._pull, arguments, self.replay) + sums

    def _tally(self, num_probes: int) -> Tally:
        return Tally(
            self._rows,
            num_probes=num_probes,
            num_layers=len(self.layers),
            has_maps=self._has_maps,
        )

    def _no_adjoint(self, num_probes: int) -> Adjoint:
        """That at the end of the run, where nothing is to come."""
        return {
            name: jnp.zeros((num_probes, *moment.shape), moment.dtype)
            for name, moment in self._moments.items()
        }


def _settings(
    trajectory: Trajectory, probes: Responses, path: Path, by_token: int
) -> str:
    """What an unfinished ledger must agree in, to be gone on with."""
    arrays = [*jax.tree.leaves(probes.sequences), *on_host(trajectory.start).values()]
    names = [*probes.prompt_names, *probes.types]
    shape = json.dumps([path, by_token, trajectory.num_steps, names])
    return digest([shape, *(np.asarray(array).tobytes() for array in arrays)])


def _begin(kept: Kept, settings: str, size: int | None, most: Callable[[], int]) -> int:
    """How many responses are in flight; what another ledger left is forgotten."""
    if "begun" in kept:
        begun = kept.get("begun")
        if str(begun["settings"]) == settings and size in (None, int(begun["size"])):
            return int(begun["size"])
        kept.clear()
    size = most() if size is None else size
    kept.put("begun", {"settings": np.array(settings), "size": np.array(size)})
    return size


def _chunks(rows: Sequences, size: int) -> list[Sequences]:
    """The rows in chunks of one shape, the last one filled up with empty responses."""
    count = len(rows.mask)
    places = np.arange(-(-count // size) * size)
    filled = jax.tree.map(lambda leaf: np.asarray(leaf)[places % count], rows)
    filled = filled._replace(mask=filled.mask & (places < count)[:, None])
    return [
        jax.tree.map(lambda leaf: leaf[start : start + size], filled)  # noqa: B023
        for start in range(0, len(places), size)
    ]


def _joined(found: list[Arrays], owners: np.ndarray, num_probes: int) -> Arrays:
    """The sums of all chunks; those of tokens added up to their responses."""

    def joined(name: str) -> np.ndarray:
        axis = 0 if name.startswith(("layers/", "map/")) or name == "before" else 1
        every = np.concatenate([sums[name] for sums in found], axis)
        every = np.moveaxis(every, axis, 0)[: len(owners)]
        if name.startswith("map/"):
            return every
        of_probes = np.zeros((num_probes, *every.shape[1:]))
        np.add.at(of_probes, owners, every)
        return np.moveaxis(of_probes, 0, axis)

    return {name: joined(name) for name in found[0] if name != "noise_level"}
