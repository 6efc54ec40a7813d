"""What is measured of a decoder while it is pretrained."""

import time
from typing import Any

import jax
import numpy as np

from ldjax.equation.sequences import Sequences
from ldjax.equation.step import StepState
from ldjax.models.decoder.scoring import make_score_fn

__all__ = ["Watch", "make_held_out_loss"]


def make_held_out_loss(apply_fn: Any, rows: Sequences, batch_size: int) -> Any:
    """A function from parameters to the held-out loss, in nats per token."""
    score_fn = make_score_fn(apply_fn)
    batches = [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + batch_size], rows)
        for i in range(0, len(rows.tokens), batch_size)
    ]
    num_tokens = int(rows.mask.sum())

    def held_out_loss(params: Any) -> float:
        scores = [np.asarray(score_fn(params, batch), float) for batch in batches]
        return -sum(float(score.sum()) for score in scores) / num_tokens

    return held_out_loss


class Watch:
    """Measures speed and held-out loss, and keeps the latter out of the former."""

    def __init__(self, held_out_loss: Any, tokens_per_step: int) -> None:
        self._held_out_loss = held_out_loss
        self._tokens_per_step = tokens_per_step
        self._since: tuple[int, float] | None = None

    def speed(self, state: StepState) -> dict[str, float]:
        """Tokens per second since the last evaluation; compilation included."""
        step = int(state.step)  # waits for the device
        if self._since is None:
            return {}
        since, start = self._since
        seconds = time.perf_counter() - start
        return {"tokens_per_second": (step - since) * self._tokens_per_step / seconds}

    def held_out(self, state: StepState) -> dict[str, float]:
        """The held-out loss in nats per token."""
        loss = self._held_out_loss(state.params)
        self._since = int(state.step), time.perf_counter()
        return {"held_out_loss": loss}
