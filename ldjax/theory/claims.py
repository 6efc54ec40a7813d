"""What is said of a run and decided by its numbers: identities, claims and findings.

An identity is true whatever the run does, up to rounding: where it fails, the program
is wrong. A claim was stated before the run and may be refuted by it. A finding is an
answer to an open question, and neither answer is a failure.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

__all__ = ["Claim", "Standing", "failures", "standing", "stored", "told"]

#: What several seeds say of a claim together.
Standing = Literal["held", "refuted", "depends"]

_WORDS = {
    "identity": ("FAILS", "holds"),
    "claim": ("FAILS", "holds"),
    "finding": ("refuted", "held"),
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence about a run, and whether it is true.

    Attributes:
      text: The sentence with its numbers, in one line.
      holds: Whether it is true.
      kind: What it means if it is not: the program is wrong (`"identity"`), the claim
        is refuted, or, of a `"finding"`, nothing.
      verdict: What several seeds say together, where there are some.
      numbers: What it was decided by, by name, ready for JSON: mostly `value` and
        `bound`.

    Examples:
      >>> claim = Claim("R2 of single steps is 0.98", True, numbers={"value": 0.98})
      >>> print(claim)
      holds: R2 of single steps is 0.98
      >>> claim.record()
      {'text': 'R2 of single steps is 0.98', 'holds': True, 'value': 0.98}
    """

    text: str
    holds: bool
    kind: Literal["identity", "claim", "finding"] = "claim"
    verdict: Standing | None = None
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        word = _WORDS[self.kind][self.holds]
        if self.verdict is not None:
            word = self.verdict if self.kind == "finding" else f"{word}, {self.verdict}"
        return f"{word}: {self.text}"

    def about(self, name: str) -> "Claim":
        """The same claim, where it is made of several things, by the name of one."""
        return dataclasses.replace(self, text=f"{name}: {self.text}")

    def record(self) -> dict[str, Any]:
        """The claim as `summary.json` has it."""
        verdict = {} if self.verdict is None else {"verdict": self.verdict}
        return {"text": self.text, "holds": self.holds, **verdict, **self.numbers}


def standing(truths: Sequence[bool]) -> Standing:
    """What seeds say together of a claim, from whether it is true for each of them.

    Examples:
      >>> standing([True, True]), standing([True, False]), standing([False])
      ('held', 'depends', 'refuted')
    """
    return "held" if all(truths) else "depends" if any(truths) else "refuted"


def failures(claims: Iterable[Claim]) -> list[Claim]:
    """The identities and claims that do not hold: what a program ends with status 1 by.

    Examples:
      >>> failures([Claim("0 > 1", False, "finding"), Claim("1 > 0", True)])
      []
    """
    return [claim for claim in claims if not claim.holds and claim.kind != "finding"]


def stored(claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """The claims as `summary.json` has them.

    Examples:
      >>> stored([Claim("1 > 0", True, "identity")])
      [{'text': '1 > 0', 'holds': True}]
    """
    return [claim.record() for claim in claims]


def told(claims: Iterable[Claim]) -> str:
    """The claims for who ran the program, one a line.

    Examples:
      >>> print(told([Claim("1 > 0", True), Claim("0 > 1", False)]))
      holds: 1 > 0
      FAILS: 0 > 1
    """
    return "\n".join(map(str, claims))
