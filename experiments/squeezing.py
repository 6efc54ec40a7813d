"""The squeezing effect on logits alone: Figures 2 and 12."""

from ldjax.cli import program

if __name__ == "__main__":
    program("squeezing")
