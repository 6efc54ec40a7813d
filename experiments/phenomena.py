"""The paper's phenomena, each with exact numbers."""

from ldjax.cli import program

if __name__ == "__main__":
    program("phenomena")
