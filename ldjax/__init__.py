"""ldjax: an exact account of finetuning."""

from ldjax.log_probs import (
    Sequences,
    adaptation_matrix,
    log_softmax,
    sequence_log_probs,
    token_log_probs,
)

__all__ = [
    "Sequences",
    "adaptation_matrix",
    "log_softmax",
    "sequence_log_probs",
    "token_log_probs",
]
