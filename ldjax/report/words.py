"""What happened in a finetuning run, in plain language with numbers."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from ldjax.data import response_types
from ldjax.report.measures import PROBE_SETS, change_curves

__all__ = [
    "MEANINGS",
    "change_lines",
    "headline",
    "named",
    "told",
    "what_happened",
]

#: What the lines of a chart mean: response types, and what is derived from them.
MEANINGS = {
    **response_types.MEANINGS,
    "margin": "chosen - rejected",
    "greedy": "the greedy token after each prefix, y*",
    "argmax": "the greedy token after each prefix, y*",
}
_SETTINGS = {
    "loss": "loss {}",
    "num_steps": "{:,} updates",
    "batch_size": "of {} rows each",
    "optimizer": "by {}",
    "learning_rate": "at {:g}",
    "lora_rank": "adapters of rank {}",
    "base_model": "base model {}",
}


def headline(settings: Mapping[str, Any]) -> str:
    """What was done, in one line; empty for a run of another kind.

    Args:
      settings: Those in the run's `config.json`.

    Examples:
      >>> headline({"loss": "dpo", "num_steps": 1200, "learning_rate": 5e-4})
      'loss dpo, 1,200 updates, at 0.0005'
    """
    if "loss" not in settings:
        return ""
    given = [
        text.format(settings[name])
        for name, text in _SETTINGS.items()
        if settings.get(name)
    ]
    return ", ".join(given).replace(" updates, of", " updates of")


def named(type_: str) -> str:
    """A response type with what it is, where it is one of the paper's.

    Examples:
      >>> named("chosen"), named("mine")
      ('chosen (the preferred answer)', 'mine')
    """
    return f"{type_} ({MEANINGS[type_]})" if type_ in MEANINGS else type_


def told(end: float, highest: float) -> str:
    """A curve in words.

    Args:
      end: Where it ends, since its start, in nats.
      highest: Its highest point, since its start.

    Returns:
      What it did.

    Examples:
      >>> told(-2.0, highest=4.0)
      'rises by 4.0, then falls to -2.0'
      >>> told(-2.0, highest=0.0)
      'falls by 2.0'
    """
    back = highest - end
    # A peak counts as one if both its sides are a tenth of the larger move, and a nat.
    least = max(1.0, 0.1 * max(highest, back))
    if highest > least and back > least:
        return f"rises by {highest:.1f}, then falls to {end:+.1f}"
    if abs(end) < 0.05:
        return "stays where it was"
    return f"{'rises' if end > 0 else 'falls'} by {abs(end):.1f}"


def what_happened(
    metrics: pl.DataFrame, fidelity: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Sentences about a run.

    Args:
      metrics: The table of the run.
      fidelity: That in its `summary.json`, by response type; may be empty.

    Returns:
      One sentence for each set of prompts and thing of interest.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [(s, s, "train/0", "chosen", "log_prob", 3.0 * s) for s in (0, 1)]
      >>> metrics = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> what_happened(metrics, {})
      ['On trained prompts, chosen (the preferred answer) rises by 3.0 nats.']
    """
    sentences = []
    for name, text in PROBE_SETS.items():
        sentences += _of_set(change_lines(metrics, name), f"On {text}")
    if "all" in fidelity:
        sentences.append(_of_fit(fidelity["all"]))
    return sentences


def change_lines(metrics: pl.DataFrame, probe_set: str) -> dict[str, Any]:
    """Curves by type, with `margin` and `greedy` where they were observed.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [(0, 0, "train/0", k, "log_prob", 1.0) for k in ("chosen", "rejected")]
      >>> metrics = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> list(change_lines(metrics, "train"))
      ['chosen', 'rejected', 'margin']
    """
    lines = change_curves(metrics, "log_prob", probe_set)
    greedy = change_curves(metrics, "argmax_log_prob", probe_set)
    if set(response_types.SIDES) <= lines.keys():
        (x, chosen), (_, rejected) = (lines[side] for side in response_types.SIDES)
        lines["margin"] = lines["chosen"]._replace(x=x, y=chosen - rejected)
    if "chosen" in greedy:
        lines["greedy"] = greedy["chosen"]
    return lines


def _of_set(lines: Mapping[str, Any], where: str) -> list[str]:
    if not lines:
        return []
    moves = {name: float(curve.y[-1]) for name, curve in lines.items()}
    main = [
        f"{named(name)} {told(moves[name], float(lines[name].y.max()))} nats"
        for name in response_types.SIDES
        if name in lines
    ]
    sentences = [f"{where}, {' and '.join(main)}."] if main else []
    if "margin" in moves:
        verb = "grows" if moves["margin"] > 0 else "shrinks"
        sentences.append(
            f"The margin between them {verb} by {abs(moves['margin']):.1f} nats."
        )
    special = (*response_types.SIDES, "margin", "greedy")
    others = [name for name in moves if name not in special]
    others.sort(key=lambda name: moves[name])
    if others:
        low, high = others[0], others[-1]
        sentences.append(
            f"Of the other types {named(high)} ends highest, at "
            f"{moves[high]:+.1f}, and {named(low)} lowest, at {moves[low]:+.1f} nats."
        )
    if "greedy" in moves:
        sentences.append(
            "The greedy tokens after each prefix of chosen change by "
            f"{moves['greedy']:+.1f} nats together."
        )
    return sentences


def _of_fit(fit: Mapping[str, Any]) -> str:
    missed, right = fit["step_remainder_ratio"], fit["sign_agreement"]
    single = [f"misses {100 * missed:.0f} %"] if missed is not None else []
    if right is not None:
        single.append(f"has the sign right in {100 * right:.0f} % of cases")
    text = (
        "Added up over all updates, first order predicts "
        f"{fit['predicted_change']:+.2f} nats for a tracked response where "
        f"{fit['change']:+.2f} were measured"
    )
    of_single = f"; of a single update it {', and '.join(single)}" if single else ""
    return f"{text}{of_single}."
