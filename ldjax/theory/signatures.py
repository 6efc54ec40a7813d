"""The published signatures of finetuning's learning dynamics, and their verdicts.

A signature is a sign, an order or a shape that the published curves of SFT and DPO
have and that a run of another model is expected to have too. They were written with
those curves in view, so that they hold there is no evidence for them.

References:
  Ren & Sutherland, `Learning Dynamics of LLM Finetuning
  <https://arxiv.org/abs/2407.10490>`_, 2025, Section 4.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from ldjax.theory.curves import Check, Curves, D, TooFewPointsError, on_baseline, start
from ldjax.theory.published import REGIMES, SIGNATURES, Signature

__all__ = ["REGIMES", "SIGNATURES", "Signature", "Verdict", "evaluate", "table"]


class Verdict(NamedTuple):
    """What became of a signature on a run; `_asdict()` is ready for JSON.

    Attributes:
      id: Of the signature.
      strength: Of the signature.
      text: Of the signature.
      verdict: Whether it holds.
      numbers: Both sides of every check by label.
      why: The checks that failed, or why there is no verdict; also when it could not
        be known whether the run moved.

    Examples:
      >>> verdict = Verdict("DPO5b", "core", "...", "holds", {"D(argmax)": 1.5}, "")
      >>> verdict._asdict()["numbers"]
      {'D(argmax)': 1.5}
    """

    id: str
    strength: Literal["core", "soft"]
    text: str
    verdict: Literal["holds", "fails", "not applicable"]
    numbers: dict[str, float]
    why: str


def evaluate(
    curves: Curves, regime: str, baseline: Curves | None = None
) -> list[Verdict]:
    """The verdict of every signature of a regime.

    There is none on a run that did not move: SFT must raise chosen, and DPO the
    margin, by 5% of `|start(chosen)|`. A run that did not log what that takes counts as
    moved, and its verdicts say so.

    Args:
      curves: Of the run.
      regime: One of `REGIMES`.
      baseline: Curves of the run to compare with, for the two regimes that are pairs.

    Returns:
      In the order of `SIGNATURES`.

    Raises:
      ValueError: If the regime is unknown, or if it is a pair and there is no
        baseline, or the other way round.

    Examples:
      >>> import numpy as np
      >>> curves = Curves({"chosen": np.linspace(-100.0, -60.0, 20)})
      >>> verdicts = evaluate(curves, "sft")
      >>> verdicts[0].verdict, verdicts[0].numbers["D(chosen)"]
      ('holds', 38.9...)
      >>> verdicts[2].verdict, verdicts[2].why
      ('not applicable', 'not logged: irr_test, irr_train')
    """
    if regime not in REGIMES:
        raise ValueError(f"`regime` must be one of {', '.join(REGIMES)}: {regime!r}.")
    is_pair = regime.startswith("pair")
    if is_pair != (baseline is not None):
        expected = "needs" if is_pair else "takes no"
        raise ValueError(f"Regime {regime!r} {expected} `baseline`: {REGIMES[regime]}.")
    runs = (curves,) if baseline is None else (curves, baseline)
    preconditions = _preconditions(regime)
    known = [check for check in preconditions if not check.missing(*runs)]
    unmoved = [check for check in known if not check.holds(*runs)]
    unknown = {name for check in preconditions for name in check.missing(*runs)}
    return [
        _verdict(signature, runs, unmoved, unknown)
        for signature in SIGNATURES
        if regime in signature.regimes
    ]


def table(verdicts: Sequence[Verdict]) -> str:
    """Verdicts as aligned text: the numbers, and below them the why where there is one.

    Examples:
      >>> print(table([Verdict("DPO5b_greedy_rises", "core", "...", "fails",
      ...                      {"D(argmax)": -1.5}, "not D(argmax) > 0")]))
      DPO5b_greedy_rises  core  fails  D(argmax) -1.5
                                       not D(argmax) > 0
    """
    heads = [(verdict.id, verdict.strength, verdict.verdict) for verdict in verdicts]
    widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    lines = []
    for verdict, head in zip(verdicts, heads, strict=True):
        left = "  ".join(map(str.ljust, head, widths))
        numbers = [f"{label} {value:.4g}" for label, value in verdict.numbers.items()]
        for text in filter(None, (", ".join(numbers), verdict.why)):
            lines.append(f"{left}  {text}")
            left = " " * len(left)
    return "\n".join(lines)


def _preconditions(regime: str) -> list[Check]:
    series = "margin" if "dpo" in regime else "chosen"
    moved, size = D(series), 0.05 * abs(start("chosen"))
    checks = [moved >= size]
    if regime.startswith("pair"):
        checks.append(on_baseline(moved) >= on_baseline(size))
    return checks


def _verdict(
    signature: Signature,
    runs: tuple[Curves, ...],
    unmoved: Collection[Check],
    unknown: Collection[str],
) -> Verdict:
    def verdict(word, checks=(), why=()) -> Verdict:
        numbers = {k: v for check in checks for k, v in check.numbers(*runs).items()}
        head = signature.id, signature.strength, signature.text
        return Verdict(*head, word, numbers, "; ".join(why))

    if unmoved:
        why = [f"did not move: not {check.label}" for check in unmoved]
        return verdict("not applicable", unmoved, why)
    missing = {name for check in signature.checks for name in check.missing(*runs)}
    if missing:
        return verdict("not applicable", why=[f"not logged: {_names(missing)}"])
    try:
        failed = [check for check in signature.checks if not check.holds(*runs)]
    except TooFewPointsError as error:
        return verdict("not applicable", why=[str(error)])
    why = [f"not {check.label}" for check in failed]
    if unknown:
        why.append(f"whether the run moved is not known without {_names(unknown)}")
    return verdict("fails" if failed else "holds", signature.checks, why)


def _names(series: Iterable[str]) -> str:
    return ", ".join(sorted(series))
