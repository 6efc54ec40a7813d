"""Learning dynamics of handwritten digits: Figure 1."""

from ldjax.cli import program

if __name__ == "__main__":
    program("mnist")
