"""Pretrain a small decoder on local text: the base model of the later experiments."""

from ldjax.cli import program

if __name__ == "__main__":
    program("pretrain")
