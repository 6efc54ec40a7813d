"""Responses to one prompt, whose prompt is read once.

The dozen responses that are watched of a prompt repeat it a dozen times: in dialogues,
most of all tokens. A decoder reads the prompt once, and each of its responses goes on
from its keys and values; logits are made of responses only. What is measured is the
same, up to rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldjax.data.batches import bucket_length
from ldjax.equation.sequences import ApplyFn, Prompts, Sequences
from ldjax.watch.probes import ProbeSet, shard_probes

__all__ = ["on_devices", "padded", "share_prompts", "spread_fn"]

# Prompts and responses are padded to multiples of so many tokens.
_WIDTH = 16


def share_prompts(
    probes: ProbeSet, size: int | None = None, *, together: int | None = None
) -> ProbeSet:
    """The same probes in batches whose rows share their prompts.

    For apply functions of decoders, which read `Sequences.prompts`.

    Args:
      probes: The watched responses.
      size: Most rows of a batch; None for one batch for each bucket of prompts'
        lengths.
      together: Most rows that go on from one prompt, for slices of as many rows of a
        batch that is not computed at once; by default `size`.

    Returns:
      The probes, in other batches: a response begins with the last token of its prompt.
      Rows that fill up score nothing; their place is -1.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> from ldjax.watch.probes import Probe
      >>> answers = [Example((5, 3, 9), (7, 0)), Example((5, 3, 9), (8, 8, 0))]
      >>> probes = [Probe("train/0", "chosen", answer) for answer in answers]
      >>> whole = ProbeSet.of(probes, max_length=64, batch_size=None)
      >>> ((places, batch),) = share_prompts(whole).batches
      >>> batch.prompts.mask.sum(), batch.tokens[:, 0]
      (Array(2, dtype=...), Array([9, 9], dtype=...))
    """
    examples = [probe.example for probe in probes.probes]
    of_prompts: dict[tuple[int, ...], list[int]] = {}
    for place, example in enumerate(examples):
        of_prompts.setdefault(tuple(example.prompt_ids), []).append(place)
    together = together or size
    buckets: dict[int, list[list[int]]] = {}
    for ids, places in of_prompts.items():
        # No more rows than there may be: then a prompt is read more than once.
        step = min(len(places), together or len(places))
        groups = buckets.setdefault(bucket_length(len(ids)), [])
        groups += [places[i : i + step] for i in range(0, len(places), step)]
    batches = []
    for _, groups in sorted(buckets.items()):
        each = max(map(len, groups))
        most = len(groups) if size is None else max(1, size // each)
        # As few batches as can be, of one shape.
        at_once = math.ceil(len(groups) / math.ceil(len(groups) / most))
        begun = (len(examples[group[0]].prompt_ids) - 1 for group in groups)
        answers = (len(examples[i].response_ids) for group in groups for i in group)
        prompt, response = padded(max(begun)), padded(max(answers))
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            some += [[]] * (at_once - len(some))
            batches.append(_batch(examples, some, (each, prompt, response)))
    return ProbeSet(probes.probes, tuple(batches))


def on_devices(
    apply_fn: ApplyFn,
    probes: ProbeSet,
    mesh: Mesh,
    size: int | None = None,
    *,
    together: int | None = None,
) -> ProbeSet:
    """The same probes as they are computed.

    With shared prompts on one device, where the apply function is one that reads them
    (`ldjax.linen.LinenApply`); else in rows of whole texts, divided over the devices.

    Args:
      apply_fn: What computes their logits.
      probes: The watched responses.
      mesh: The mesh of devices (`data_mesh`).
      size: Most rows of a batch; None for any number.
      together: See `share_prompts`.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> from ldjax.runs.devices import data_mesh
      >>> from ldjax.watch.probes import Probe
      >>> probe = Probe("train/0", "chosen", Example((5, 3), (7, 0)))
      >>> whole = ProbeSet.of([probe], max_length=4, batch_size=None)
      >>> on_devices(lambda w, s: w, whole, data_mesh()).batches[0][1].prompts
    """
    if mesh.size == 1 and getattr(apply_fn, "reads_prompts", False):
        return share_prompts(probes, size, together=together)
    return shard_probes(probes if size is None else probes.in_slices(size), mesh)


def spread_fn(
    probes: ProbeSet, computed: ProbeSet
) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function from numbers of tokens in other batches to those in a set's own.

    Args:
      probes: Probes in batches of whole texts, `[row, pos]`.
      computed: The same probes as `share_prompts` has them, or in whole texts too.

    Returns:
      From arrays `[row, pos]` for each batch of `computed` to arrays for each batch of
      `probes`, zero where nothing is scored. For arrays of NumPy and of JAX.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> from ldjax.watch.probes import Probe
      >>> probe = Probe("train/0", "chosen", Example((5, 3), (7, 0)))
      >>> whole = ProbeSet.of([probe], max_length=4, batch_size=None)
      >>> spread = spread_fn(whole, share_prompts(whole))
      >>> (tokens,) = spread([jnp.arange(1.0, 17)[None]])
      >>> tokens
      Array([[0., 1., 2.]], dtype=...)
    """
    # Where a probe's numbers begin, and how many positions of its text have none.
    there: dict[int, tuple[int, int]] = {}
    offset = 0
    for places, batch in computed.batches:
        rows, length = batch.targets.shape
        for row, place in enumerate(places):
            if place >= 0:
                prompt = probes.probes[place].example.prompt_ids
                skipped = 0 if batch.prompts is None else len(prompt) - 1
                there[int(place)] = offset + row * length, skipped
        offset += rows * length
    taken = []
    for places, batch in probes.batches:
        indices = np.zeros(batch.targets.shape, np.int32)
        for row, place in enumerate(places):
            start, skipped = there[int(place)]
            indices[row] = start + np.arange(indices.shape[1]) - skipped
        mask = np.asarray(batch.mask)
        taken.append((np.where(mask, indices, 0), mask))

    def spread(values: Sequence[Any]) -> tuple[Any, ...]:
        library = jnp if isinstance(values[0], jax.Array) else np
        flat = library.concatenate([of.ravel() for of in values])
        return tuple(library.where(mask, flat[at], 0) for at, mask in taken)

    return spread


def padded(length: int) -> int:
    """The length that prompts and responses of so many tokens have in a batch.

    Examples:
      >>> padded(0), padded(16), padded(17)
      (16, 16, 32)
    """
    return _WIDTH * max(1, math.ceil(length / _WIDTH))


def _batch(
    examples: Sequence[Any], groups: Sequence[Sequence[int]], shape: tuple[int, ...]
) -> tuple[np.ndarray, Sequences]:
    """The rows of some groups of one prompt each, and their places."""
    each, prompt, response = shape
    rows = (len(groups), each)
    places = np.full(rows, -1)
    begun = np.zeros((len(groups), prompt), np.int32)
    is_begun = np.zeros(begun.shape, bool)
    tokens, targets = (np.zeros((*rows, response), np.int32) for _ in range(2))
    mask = np.zeros(tokens.shape, bool)
    for number, group in enumerate(groups):
        for row, place in enumerate(group):
            ids, answer, scored = examples[place]
            places[number, row] = place
            begun[number, : len(ids) - 1] = ids[:-1]
            is_begun[number, : len(ids) - 1] = True
            tokens[number, row, : len(answer)] = [ids[-1], *answer[:-1]]
            targets[number, row, : len(answer)] = answer
            mask[number, row, : len(answer)] = True if scored is None else scored
    flat = (jnp.asarray(of.reshape(-1, response)) for of in (tokens, targets, mask))
    prompts = Prompts(jnp.asarray(begun), jnp.asarray(is_begun))
    return places.ravel(), Sequences(*flat, prompts=prompts)
