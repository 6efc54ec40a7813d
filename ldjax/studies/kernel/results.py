"""From the views of a kernel to its identities, its numbers and its long table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldjax.data.tokenizers import Tokenizer
from ldjax.studies.kernel.measure import Analysis
from ldjax.theory.claims import Claim

__all__ = [
    "check_identities",
    "headline",
    "in_words",
    "metric_rows",
    "pushed",
    "table_of_pushes",
]

# Different programs in float32, sums over a model's parameters: measured differences
# are about 1e-6 of the largest number.
ALLOWED = 1e-4


def check_identities(analysis: Analysis) -> list[Claim]:
    """What holds exactly, up to rounding, relative to the largest number compared."""
    checks = []
    for text, (found, expected) in analysis.pairs.items():
        error, largest = np.abs(found - expected).max(), np.abs(expected).max()
        value = float(error / largest) if largest else float(error > 0)
        checks.append(
            Claim(
                f"{text}: differ by {value:.1e} of the largest "
                f"(rounding allows {ALLOWED:.0e})",
                bool(value <= ALLOWED),
                "identity",
                numbers={"value": value if np.isfinite(value) else str(value)},
            )
        )
    return checks


def metric_rows(analysis: Analysis) -> list[tuple[Any, ...]]:
    """The long table: `probe` is a token of the probe or a group, `type` of the update.

    Tokens go by their place in the text.
    """
    tables = analysis.blocks | {"token_map": analysis.token_map}
    rows = [
        (0, 0, str(m), str(l), quantity, float(value))
        for quantity, table in tables.items()
        for (m, l), value in np.ndenumerate(table)
    ]
    whole = analysis.blocks["trace"].sum()
    for name, blocks in analysis.group_blocks.items():
        numbers = {
            "group_norm": np.sqrt((blocks["norm"] ** 2).sum()),
            "group_trace_share": blocks["trace"].sum() / whole,
            "group_change": analysis.group_changes[name].sum(),
        }
        rows += [(0, 0, name, "", key, float(v)) for key, v in numbers.items()]
    return rows


def headline(analysis: Analysis) -> dict[str, float]:
    """The numbers of the whole kernel."""
    blocks = analysis.blocks

    def total(norms: np.ndarray) -> float:
        return float(np.sqrt((norms**2).sum()))

    whole = total(blocks["norm"])
    return {
        "norm": whole,
        "head_norm": total(blocks["head"]) * analysis.vocab**0.5,
        "body_norm": total(blocks["body_norm"]),
        "distance_from_identity": total(blocks["distance"]),
        "predicted_change": float(analysis.token_map.sum()),
    }


def in_words(numbers: dict[str, float]) -> str:
    """The numbers of the whole kernel, norms relative to its own."""
    whole = numbers["norm"]
    head, body, distance = (
        numbers[name] / whole
        for name in ("head_norm", "body_norm", "distance_from_identity")
    )
    return (
        f"|K|_F = {whole:.4g}; relative to it: the head's multiple of the identity "
        f"{head:.3f}, the body {body:.3f}, the distance from k I {distance:.3f}\n"
        f"first-order change of the probe text: {numbers['predicted_change']:+.4g} nats"
    )


def pushed(
    analysis: Analysis, place: int, top: int, tokenizer: Tokenizer
) -> dict[str, list[dict[str, Any]]]:
    """The tokens whose probability moves most at a probe position, both ways.

    By change of probability: by that of the log-prob they would be tokens that the
    model never says.
    """
    change, probs = analysis.change[place], analysis.probs[place]
    order = np.argsort(probs * change)

    def entry(token: int) -> dict[str, Any]:
        return {
            "token": tokenizer.decode([token]),
            "change": float(change[token]),
            "prob": float(probs[token]),
        }

    tokens = order.tolist()
    up = [entry(token) for token in tokens[::-1][:top] if change[token] > 0]
    down = [entry(token) for token in tokens[:top] if change[token] < 0]
    return {"up": up, "down": down}


def table_of_pushes(
    tokens: Sequence[str], pushes: Sequence[dict[str, list[dict[str, Any]]]]
) -> str:
    """What is pushed where, as text."""
    lines = ["", "Pushed up and down along the probe text (nats):"]
    for token, both in zip(tokens, pushes, strict=True):
        up, down = (
            ", ".join(f"{entry['token'].strip()} {entry['change']:+.2g}" for entry in v)
            for v in (both["up"], both["down"])
        )
        lines.append(f"{token!r:>20}  up: {up}; down: {down}")
    return "\n".join([*lines, ""])
