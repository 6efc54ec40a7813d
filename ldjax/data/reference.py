"""Log-probs under the reference policy: computed once, and never stale.

A preference loss compares the policy with where it started. The reference log-probs of
the training pairs are numbers that do not change during a run, so they are computed
before it and kept with the pairs (`Sequences.reference`), on disk where asked.
"""

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.data.batches import check_count
from ldjax.equation.doors import Door
from ldjax.equation.log_probs import sequence_log_probs
from ldjax.equation.sequences import Sequences, check_sequences, is_sequences
from ldjax.files.digests import digest
from ldjax.files.whole import whole_file
from ldjax.precision import watched

__all__ = ["add_reference", "fingerprint"]

_log = logging.getLogger(__name__)


def add_reference(
    apply_fn: Callable[[Any, Sequences], Any],
    params: Any,
    pairs: Any,
    *,
    batch_size: int,
    cache: Path | None = None,
) -> Any:
    r"""The same pairs with the log-prob of each sequence under these parameters.

    .. math:: \log \pi_\mathrm{ref}(y^\pm \mid x)

    Args:
      apply_fn: `(params, sequences) -> logits`.
      params: Parameters of the reference policy: those the training starts from.
      pairs: `Sequences`, or a pytree of them such as `{"chosen": ..., "rejected":
        ...}`, `[row, pos]`.
      batch_size: Rows scored at a time.
      cache: Folder to keep the numbers in. A file's name is a hash of everything the
        numbers depend on (the compiled computation, the parameters, the sequences, the
        version of JAX and the kind of device), so what is found is what would be
        computed. A file ends with the SHA-256 of what is before; one that is damaged
        is written anew, with a warning.

    Returns:
      The pairs with their `reference`.

    Raises:
      TypeError: As the functions of `ldjax.models.decoder.scoring.make_score_fn`.
      ValueError: As those functions, and if `batch_size` is not positive.

    Examples:
      >>> answer = Sequences(*np.zeros((2, 1, 3), int), np.ones((1, 3), bool))
      >>> apply_fn = lambda params, batch: params + np.zeros((1, 3, 4))
      >>> add_reference(apply_fn, jnp.zeros(()), answer, batch_size=1).reference
      Array([-4.158...], dtype=...)
    """
    check_count("batch_size", batch_size)
    apply_fn = Door(watched(apply_fn))

    @jax.jit
    def score_fn(params: Any, batch: Sequences) -> Any:
        logits = apply_fn(params, batch)
        return sequence_log_probs(logits, batch.targets, batch.mask)

    def scores(side: Any) -> np.ndarray:
        check_sequences(side, name="pairs")
        rows = jax.device_get(side.plain)
        num_rows = len(rows.targets)
        if not num_rows:
            raise ValueError("`pairs` must have at least one row.")
        batches = [
            _filled_up(rows, start, batch_size)
            for start in range(0, num_rows, batch_size)
        ]
        apply_fn.check(score_fn, params=params, pairs=batches[0])
        check_sequences(side, name="pairs", **apply_fn.limits)

        def compute() -> np.ndarray:
            scores = [np.asarray(score_fn(params, batch)) for batch in batches]
            return np.concatenate(scores)[:num_rows]

        if cache is None:
            return compute()
        program = score_fn.lower(params, batches[0]).as_text()
        platform = f"{jax.__version__} {jax.default_backend()}"
        path = cache / f"reference-{fingerprint((params, rows), program, platform)}.npy"
        found = _found(path)
        if found is None:
            found = compute()
            _keep(path, found)
        return found

    def scored(side: Sequences) -> Sequences:
        side = side._replace(reference=scores(side))
        return jax.tree.map(jnp.asarray, side)

    return jax.tree.map(scored, pairs, is_leaf=is_sequences)


def _found(path: Path) -> np.ndarray | None:
    """The numbers of a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
        numbers = content[: -hashlib.sha256().digest_size]
        if numbers + hashlib.sha256(numbers).digest() != content:
            raise ValueError("its checksum is that of other numbers")
    except (OSError, ValueError) as error:
        _log.warning("%s is damaged (%s): computed anew.", path, error)
        return None
    return np.load(io.BytesIO(numbers))


def _keep(path: Path, numbers: np.ndarray) -> None:
    """Write the numbers; they are as good where there is no room to keep them."""
    file = io.BytesIO()
    np.save(file, numbers)
    content = file.getvalue()
    try:
        with whole_file(path, is_shared=True) as partial:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content + hashlib.sha256(content).digest())
    except OSError as error:
        _log.warning("%s The log-probs are not kept.", error)


def _filled_up(rows: Sequences, start: int, batch_size: int) -> Sequences:
    """A batch of full size, so that all have one shape; its last row is repeated."""
    places = np.minimum(np.arange(start, start + batch_size), len(rows.targets) - 1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[places]), rows)


def fingerprint(tree: Any, *also: str) -> str:
    """A name for some numbers: equal where every bit is.

    Args:
      tree: Pytree of arrays; paths, dtypes and shapes count as well.
      also: Texts that count as well.

    Returns:
      The beginning of a SHA-256, 32 digits.

    Examples:
      >>> fingerprint({"a": np.zeros(2)}) == fingerprint({"b": np.zeros(2)})
      False
    """

    def pieces() -> Iterator[str | bytes]:
        yield "\0".join(also)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            array = np.ascontiguousarray(jax.device_get(leaf))
            name = jax.tree_util.keystr(path)
            yield f"{name} {array.dtype} {array.shape}"
            yield array.tobytes()

    return digest(pieces())[:32]
