"""The account of one step: train, explain, watch.

`Account` is what both forms of `ldjax.equation.step` are made of: it takes the
optimizer step and keeps the directions in parameter space it consists of (`train`), and
follows each direction to the watched log-probs: on the way to the new parameters
(`explain`) and at them (`arrive`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax.equation.account.training import Optimizer, Reasons, StepState, Trainer
from ldjax.equation.account.watching import Watcher
from ldjax.equation.doors import Door
from ldjax.equation.path import (
    Nodes,
    Path,
    averaged,
    path_of,
    weighted,
    widened_for,
)
from ldjax.equation.resolution import Observed
from ldjax.equation.sequences import (
    ApplyFn,
    Batch,
    LossFn,
    Params,
    Sequences,
    sides_of,
)
from ldjax.equation.spaces import cast_like
from ldjax.precision import watched

__all__ = ["Account", "Change", "Optimizer", "Reasons", "StepState"]


class Change(NamedTuple):
    """What an update does to the watched log-probs, by their derivatives.

    `predicted` is along the whole of it at its start; `integrated` and its `parts`,
    which sum to it, are weighted sums over the nodes.
    """

    predicted: Any
    integrated: Any
    parts: dict[str, Any]


class Account(NamedTuple):
    """What both forms of the step do."""

    trainer: Trainer
    watcher: Watcher
    nodes: Nodes

    @classmethod
    def checked(
        cls,
        apply_fn: ApplyFn,
        loss_fn: LossFn,
        optimizer: Optimizer,
        *,
        parts: str | None = "side",
        nodes: Nodes = None,
        full_vocab: bool | None = None,
        probe_batch_size: int | None = None,
        watch_fn: ApplyFn | None = None,
        where: Any = None,
        dated: bool = False,
    ) -> "Account":
        """With settings that make sense: those of `ldjax.make_step`."""
        if parts not in ("side", "example", None):
            raise ValueError(
                f'`parts` must be "side", "example" or None, got {parts!r}.'
            )
        if dated and parts != "side":
            raise ValueError(
                '`dated=True` divides the history by side: it needs `parts="side"`, '
                f"got {parts!r}."
            )
        path_of(nodes)
        if probe_batch_size is not None and probe_batch_size < 1:
            raise ValueError(
                f"`probe_batch_size` must be at least 1, or None for all probes at "
                f"once; got {probe_batch_size}."
            )
        trainer = Trainer(Door(apply_fn), loss_fn, optimizer, parts, where, dated)
        door = Door(watched(watch_fn or apply_fn))
        return cls(trainer, Watcher(door, full_vocab, probe_batch_size), nodes)

    @property
    def path(self) -> Path:
        """Where on the way of an update its derivatives are taken."""
        return path_of(self.nodes)

    def explain(
        self,
        params: Params,
        reasons: Reasons,
        probe: Batch,
        before: Mapping[str, Params] | None = None,
    ) -> tuple[Observed, Change, dict[str, Any]]:
        """What is watched, and its derivatives along an update, but those at its end.

        One pass at the start and at each node, along all that is asked for there.

        Args:
          params: At the start.
          reasons: Of the update from there.
          probe: What is watched.
          before: Directions of the update before, which ends where this one starts.

        Returns:
          What is watched at the start; the change without what `complete` adds to it
          (the parts by example are complete); the derivatives along `before`.
        """
        params = self._resolved(params, probe)
        trained, whole = self.trainer.split(params)
        at_start, inner = self.path.weight_at(0.0), self.path.inner
        everything = reasons.directions
        here = everything if at_start else {"": reasons.total}
        along = {("here", name): direction for name, direction in here.items()}
        along |= {("before", name): d for name, d in (before or {}).items()}

        def of_chunk(chunk: Sequences) -> tuple[Any, Any, Any]:
            observed, changes = self.watcher.follow(trained, whole, along, chunk)
            fn = lambda p: self.watcher.observe(whole(p), chunk).log_probs
            by_example = {}
            if reasons.by_example:
                fn = averaged(fn, reasons.total, self.nodes)
                by_example = _by_example(fn, trained, reasons.by_example)
            return observed, changes, by_example

        observed, changes, by_example = self.watcher.over(of_chunk, probe)
        by_example = jax.tree.map(  # the probe's axis came first, for the chunks
            lambda leaf: jnp.moveaxis(leaf, 1, 0), by_example
        )
        here, arrived = (
            {name: change for (which, name), change in changes.items() if which == of}
            for of in ("here", "before")
        )
        sums = [weighted(at_start, here)] if at_start else []
        if inner.places:
            follow = lambda p: self._follow(whole(p), everything, probe)[1]
            sums.append(inner.mean(follow, trained, reasons.total))
        integrated, parts = self._closed(_added(sums), by_example)
        return observed, Change(here[""], integrated, parts), arrived

    def awaited(self, reasons: Reasons) -> dict[str, Params]:
        """The directions that `arrive` is to follow; none if no node is at the end."""
        return reasons.directions if self.path.weight_at(1.0) else {}

    def arrive(
        self, params: Params, awaited: Mapping[str, Params], probe: Batch
    ) -> tuple[Any, dict[str, Any]]:
        """What is watched at the end of an update, and its derivatives there."""
        if not awaited:
            return self.watcher.log_probs(params, probe), {}
        observed, changes = self._follow(self._resolved(params, probe), awaited, probe)
        return observed.log_probs, changes

    def complete(self, change: Change, at_end: Mapping[str, Any]) -> Change:
        """The change with the derivatives at its end, if a node is there."""
        if not at_end:
            return change
        at_end = weighted(self.path.weight_at(1.0), dict(at_end))
        integrated, parts = self._closed(at_end, {})
        more = {name: _added([change.parts[name], of]) for name, of in parts.items()}
        return change._replace(
            integrated=_added([change.integrated, integrated]),
            parts=change.parts | more,
        )

    def _follow(
        self, params: Params, directions: Mapping[str, Params], probe: Batch
    ) -> tuple[Observed, dict[str, Any]]:
        """What is watched, and its derivative along each direction."""
        trained, whole = self.trainer.split(params)
        return self.watcher.over(
            lambda chunk: self.watcher.follow(trained, whole, directions, chunk), probe
        )

    def _closed(
        self, changes: Mapping[str, Any], by_example: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """The whole, and its parts: `"rounding"` is what the others leave of it."""
        named = dict(changes)
        whole = named.pop("")
        if self.trainer.parts is None:
            return whole, {}
        sums = jax.tree.map(lambda leaf: leaf.sum(0), [*by_example.values()])
        rounding = jax.tree.map(
            lambda of, *rest: of - sum(rest), whole, *named.values(), *sums
        )
        return whole, named | {"rounding": rounding, **by_example}

    def _resolved(self, params: Params, probe: Batch) -> Params:
        """Parameters between which there are others, if nodes are on the way."""
        if self.nodes is None:
            return params
        trained, whole = self.trainer.split(params)
        side, *_ = sides_of(probe).values()
        one_row = jax.tree.map(lambda leaf: leaf[:1], side)
        fn = lambda p: self.watcher.observe(whole(p), one_row).log_probs
        return whole(widened_for(fn, trained))


def _by_example(
    fn: Callable[[Params], Array],
    at: Params,
    by_example: Mapping[str, tuple[Callable[[Array], Params], int]],
) -> dict[str, Array]:
    """The derivative of `fn` along each example's direction, second axis `example`."""
    _, derivative = jax.linearize(fn, at)

    def of_side(direction_of: Callable[[Array], Params], count: int) -> Array:
        along = lambda i: derivative(cast_like(direction_of(i), at))
        changes = jax.lax.map(along, jnp.arange(count))
        return jnp.moveaxis(changes, 0, 1)

    return {name: of_side(*examples) for name, examples in by_example.items()}


def _added(trees: list[Any]) -> Any:
    return functools.reduce(lambda *pair: jax.tree.map(jnp.add, *pair), trees)
