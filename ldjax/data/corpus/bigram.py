"""The add-k bigram model that a pretrained decoder has to beat."""

from typing import NamedTuple

import numpy as np

from ldjax.equation.sequences import Sequences

__all__ = ["Bigram", "bigram_loss", "choose_k", "fit_bigram"]

GRID = np.logspace(-4, 1, 26)


class Bigram(NamedTuple):
    """Counts of pairs of tokens, sparse.

    Attributes:
      pairs: The pairs that occur, as `before * vocab_size + after`, sorted.
      counts: How often each does.
      before: How often each token occurs before another, `[vocab]`.
    """

    pairs: np.ndarray
    counts: np.ndarray
    before: np.ndarray


def fit_bigram(rows: Sequences, *, vocab_size: int) -> Bigram:
    """Count the pairs of all scored tokens with the token before them."""
    before, _ = _scored(rows)
    pairs, counts = np.unique(_codes(rows, vocab_size), return_counts=True)
    return Bigram(pairs, counts, np.bincount(before, minlength=vocab_size))


def bigram_loss(bigram: Bigram, rows: Sequences, *, k: float) -> float:
    r"""Mean loss of the scored tokens, in nats per token.

    .. math:: p(w \mid v) = \frac{c(v, w) + k}{c(v) + k V}
    """
    vocab_size = len(bigram.before)
    codes = _codes(rows, vocab_size)
    place = np.minimum(np.searchsorted(bigram.pairs, codes), len(bigram.pairs) - 1)
    counts = np.where(bigram.pairs[place] == codes, bigram.counts[place], 0)
    before, _ = _scored(rows)
    probs = (counts + k) / (bigram.before[before] + k * vocab_size)
    return float(-np.log(probs).mean())


def choose_k(fit: Sequences, check: Sequences, *, vocab_size: int) -> float:
    """The k of the grid that is best on `check` after counting `fit`."""
    bigram = fit_bigram(fit, vocab_size=vocab_size)
    losses = [bigram_loss(bigram, check, k=float(k)) for k in GRID]
    return float(GRID[np.argmin(losses)])


def _scored(rows: Sequences) -> tuple[np.ndarray, np.ndarray]:
    mask = np.asarray(rows.mask)
    tokens, targets = np.asarray(rows.tokens)[mask], np.asarray(rows.targets)[mask]
    return tokens.astype(np.int64), targets.astype(np.int64)


def _codes(rows: Sequences, vocab_size: int) -> np.ndarray:
    before, after = _scored(rows)
    return before * vocab_size + after
