"""What is read off a traced program: calls, lookups, and what is linear in what."""

from ldjax.programs.lookups import Lookups, find_lookups

__all__ = ["Lookups", "find_lookups"]
