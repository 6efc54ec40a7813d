"""Which watched responses a ledger is about."""

from collections.abc import Collection, Sequence

from ldjax.watch.probes import Probe
from ldjax.watch.record import TRACKED, set_of

__all__ = ["choose"]


def choose(
    words: Sequence[str], probes: Sequence[Probe], tracked: Collection[str]
) -> list[Probe]:
    """The responses that words name, each once, in the order of the words.

    Args:
      words: Each is a set (`tracked`, `train`, `test`), the name of a prompt or a type
        of the tracked responses; behind a colon the type.
      probes: All watched responses.
      tracked: Names of the prompts whose responses are tracked.

    Raises:
      ValueError: If a word names none.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> text = Example((1,), (2,))
      >>> probes = [Probe("train/0", kind, text) for kind in ("chosen", "rejected")]
      >>> [probe.type for probe in choose(["rejected", "tracked"], probes, ["train/0"])]
      ['rejected', 'chosen']
    """
    types = dict.fromkeys(probe.type for probe in probes)
    found: dict[tuple[str, str], Probe] = {}
    for word in words:
        who, _, type_ = word.rpartition(":")
        if type_ not in types:
            who, type_ = word, ""
        elif not who:
            who = TRACKED
        names = {
            probe.prompt_name for probe in probes if set_of(probe.prompt_name) == who
        }
        names = set(tracked) if who == TRACKED else names or {who}
        matches = [
            probe
            for probe in probes
            if probe.prompt_name in names and type_ in ("", probe.type)
        ]
        if not matches:
            sets = dict.fromkeys(set_of(probe.prompt_name) for probe in probes)
            raise ValueError(
                f"{word!r} is no watched response: name {', '.join([TRACKED, *sets])}, "
                f"a prompt such as {probes[0].prompt_name}, or a type, "
                f"{', '.join(types)}; or both, as in {probes[0].prompt_name}:"
                f"{probes[0].type}."
            )
        found |= {(probe.prompt_name, probe.type): probe for probe in matches}
    return [*found.values()]
