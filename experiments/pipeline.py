"""The paper's main experiments in one go: base, SFT, DPO after it and alone."""

from ldjax.cli import program

if __name__ == "__main__":
    program("pipeline")
