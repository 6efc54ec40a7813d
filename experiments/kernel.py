"""The exact kernel between two texts, and what a step on one does to the other."""

from ldjax.cli import program

if __name__ == "__main__":
    program("kernel")
