"""Figures of runs, drawn from their run folders."""

from ldjax.report import figures

__all__ = ["figures"]
