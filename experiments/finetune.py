"""Finetune a language model, with an exact account of every response."""

from ldjax.cli import program

if __name__ == "__main__":
    program("finetune")
