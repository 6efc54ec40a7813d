"""Pairs of everyday questions and answers, in the style of Anthropic-HH.

Written for ldjax: thirty-two to train on, with both answers in other words, answers of
the same format with other facts, and unrelated text; and eight that are only watched.
"""

from pathlib import Path

__all__ = ["everyday_pairs"]


def everyday_pairs() -> tuple[Path, Path]:
    """The files of the pairs, as `read_preferences` takes them.

    Returns:
      The pairs to train on, and those that are held out.

    Examples:
      >>> from ldjax.data.preferences import read_preferences
      >>> train, test = everyday_pairs()
      >>> len(read_preferences(train).rows), len(read_preferences(test).rows)
      (32, 8)
    """
    folder = Path(__file__).parent
    return folder / "train.jsonl", folder / "test.jsonl"
