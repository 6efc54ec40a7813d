"""Remedies for the squeezing effect, judged by what the policies say."""

__all__: list[str] = []
