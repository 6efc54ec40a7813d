"""SFT and then DPO of a real language model, SmolLM2-135M, fully accounted for."""

from ldjax.cli import program

if __name__ == "__main__":
    program("real")
