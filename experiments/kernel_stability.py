"""How much the kernel changes during finetuning, and what its proxies bound."""

from ldjax.cli import program

if __name__ == "__main__":
    program("stability")
