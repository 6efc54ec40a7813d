"""Remedies for the squeezing effect, judged by what the policies say."""

from ldjax.cli import program

if __name__ == "__main__":
    program("mitigation")
