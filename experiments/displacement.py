"""Why the chosen answer falls under DPO."""

from ldjax.cli import program

if __name__ == "__main__":
    program("displacement")
