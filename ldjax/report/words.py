"""What happened in a finetuning run, in plain language with numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldjax.data import response_types
from ldjax.report.measures import PROBE_SETS, part_label
from ldjax.report.numbers.balance import Balance
from ldjax.report.numbers.lines import GREEDY, MARGIN, Line
from ldjax.watch.record import QUADRATURE, REMAINDER

__all__ = ["MEANINGS", "headline", "named", "sentences", "told"]

#: What the lines of a chart mean: response types, and what is derived from them.
MEANINGS = {
    **response_types.MEANINGS,
    MARGIN: "chosen - rejected",
    GREEDY: "the greedy token after each prefix, y*",
    "argmax": "the greedy token after each prefix, y*",
}
_SETTINGS = {
    "loss": "loss {}",
    "num_steps": "{:,} updates",
    "batch_size": "of {} rows each",
    "optimizer": "by {}",
    "learning_rate": "at {:g}",
    "lora_rank": "adapters of rank {}",
}


def headline(settings: Mapping[str, Any]) -> str:
    """What was done and from where, in one line; empty for a run of another kind.

    Args:
      settings: Those in the run's `config.json`.

    Examples:
      >>> headline({"loss": "dpo", "num_steps": 1200, "learning_rate": 5e-4})
      'loss dpo, 1,200 updates, at 0.0005'
      >>> headline({"loss": "dpo", "init": "runs/sft", "base_model": "toy"})
      'loss dpo, from the run sft'
    """
    if "loss" not in settings:
        return ""
    given = [
        text.format(settings[name])
        for name, text in _SETTINGS.items()
        if settings.get(name)
    ]
    return ", ".join([*given, *_start(settings)]).replace(" updates, of", " updates of")


def _start(settings: Mapping[str, Any]) -> list[str]:
    """What it started from; a base model only where no other run is named."""
    if init := settings.get("init"):
        return [f"from the run {Path(init).name}"]
    if base := settings.get("base_model"):
        # An id on the hub has a slash too, but is no path of the machine.
        name = Path(base).name if Path(base).is_absolute() else base
        return [f"from the base model {name}"]
    return []


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


def sentences(
    lines: Mapping[str, Mapping[str, Line]], balances: Mapping[str, Balance]
) -> list[str]:
    """A run in three sentences: the two sides, the other types, the account.

    Args:
      lines: Those of `mean_lines`, by set of prompts.
      balances: Those of `balances`.

    Returns:
      The sentences, without those that there are no numbers for.

    Examples:
      >>> import numpy as np
      >>> line = Line(np.arange(2), np.array([0.0, 3.0]), np.array([0.0, 0.5]), -9.0, 4)
      >>> sentences({"train": {"chosen": line}}, {})
      ['On 4 trained prompts chosen rises by 3.0 ± 0.5 nats.']
    """
    first = next((lines[name] for name in PROBE_SETS if lines.get(name)), {})
    found = [_of_sides(lines), _of_others(first), _of_account(balances)]
    return [f"{text[0].upper()}{text[1:]}." for text in found if text]


def _of_sides(lines: Mapping[str, Mapping[str, Line]]) -> str:
    """The two sides and their margin; of further sets where they end."""
    clauses = []
    for name, text in PROBE_SETS.items():
        of = lines.get(name, {})
        sides = [side for side in response_types.SIDES if side in of]
        if not sides:
            continue
        say = _moved if not clauses else lambda side, line: f"{side} {_change(line)}"
        moved = [say(side, of[side]) for side in sides]
        nats = " nats" if not clauses else ""
        clause = f"on {of[sides[0]].num_prompts} {text} {' and '.join(moved)}{nats}"
        if MARGIN in of:
            verb = "grows" if of[MARGIN].end > 0 else "shrinks"
            clause += f", the margin {verb} by {abs(of[MARGIN].end):.1f}"
        clauses.append(clause)
    return "; ".join(clauses)


def _of_others(lines: Mapping[str, Line]) -> str:
    """The two ends of the other types, and the greedy tokens."""
    special = (*response_types.SIDES, MARGIN, GREEDY)
    others = sorted(
        (line.end, name) for name, line in lines.items() if name not in special
    )
    clauses = []
    if others:
        (low, lowest), (high, highest) = others[0], others[-1]
        clause = f"of the other types {named(highest)} ends highest, at {high:+.1f}"
        if lowest != highest:
            clause += f", and {named(lowest)} lowest, at {low:+.1f} nats"
        clauses.append(clause)
    if GREEDY in lines:
        end = lines[GREEDY].end
        clauses.append(f"the greedy tokens y* change by {end:+.1f} nats together")
    return "; ".join(clauses)


def _of_account(balances: Mapping[str, Balance]) -> str:
    """How far the parts account for the change of one type, and the largest of them."""
    if not balances:
        return ""
    type_ = "chosen" if "chosen" in balances else next(iter(balances))
    count, measured, predicted, integrated, _, parts = balances[type_]
    of = f"{count} tracked response{'s' if count > 1 else ''} of type {type_}"
    mean = " in the mean" if count > 1 else ""
    accounts = [f"first order at the start of each update says {predicted:+.2f}"]
    if integrated is not None:
        accounts.insert(0, f"the integral along the updates gives {integrated:+.2f}")
    main = [name for name in parts if name not in (REMAINDER, QUADRATURE)]
    main = sorted(main, key=lambda name: -abs(parts[name]))[:2]
    largest = " and ".join(f"{part_label(name)} {parts[name]:+.1f}" for name in main)
    change = f"{measured:+.2f} nats{mean}"
    text = f"over all updates {of} changed by {change}: {', '.join(accounts)}"
    return f"{text}; the largest parts are {largest}" if len(main) > 1 else text


def _moved(side: str, line: Line) -> str:
    """A side's curve in words, with the standard error of where it ends."""
    text = told(line.end, float(line.y.max()))
    error = line.error[-1]
    is_move = not text.startswith("stays")
    return f"{side} {text}{f' ± {error:.1f}' if is_move and error == error else ''}"


def _change(line: Line) -> str:
    return f"{line.end:+.1f}"
