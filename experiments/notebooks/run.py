"""Execute the notebooks in fresh kernels, and keep the reference figure of each.

A notebook is a `.py` file in percent format; its `.ipynb` beside it holds the same
cells and one output, that of the cell tagged `reference`. Jupytext keeps the two in
step (`jupytext --sync experiments/notebooks/*.py` after a change of words); after a
change of code that figure is made anew by executing the notebook in full:

    python -m experiments.notebooks.run            (all of them; 31 min on a busy CPU)
    python -m experiments.notebooks.run 1_equation
    python -m experiments.notebooks.run --smoke --out DIR     (tiny; executed copies)
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ldjax import command

NOTEBOOKS = Path(__file__).parent
REFERENCE = "reference"


@dataclass(frozen=True)
class Config:
    """Execute notebooks in fresh kernels."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Notebooks, such as 1_equation; all if none is named."""
    out: Path | None = None
    """Folder for executed copies with all their outputs, and in a smoke for the runs.
    By default the `.ipynb` beside each notebook is written, with its reference figure
    only."""
    smoke: bool = False
    """Everything tiny; needs `--out`, since such figures are no reference."""

    def check(self) -> None:
        """Refuse what cannot run."""
        there = [path.stem for path in sources()]
        if unknown := set(self.names) - set(there):
            raise ValueError(
                f"no notebook {', '.join(sorted(unknown))}; there are "
                f"{', '.join(there)}"
            )
        if self.smoke and self.out is None:
            raise ValueError("--smoke needs --out: its figures are no reference")


def sources() -> list[Path]:
    """The notebooks as text, in their order."""
    return sorted(NOTEBOOKS.glob("[0-9]*.py"))


@command.experiment
def main(config: Config) -> int:
    """Execute the notebooks; the exit status."""
    with command.set_up():
        config.check()
    for path in sources():
        if config.names and path.stem not in config.names:
            continue
        begin = time.perf_counter()
        notebook = jupytext.read(path)
        try:
            execute(notebook, config)
        except CellExecutionError as error:
            sys.exit(f"notebooks: {path.name} failed\n{error}")
        written = (config.out or NOTEBOOKS) / f"{path.stem}.ipynb"
        written.parent.mkdir(parents=True, exist_ok=True)
        if config.out is None:
            keep_reference_only(notebook)
        jupytext.write(notebook, written)
        print(f"{path.stem}: {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


def execute(notebook: Any, config: Config) -> None:
    """Run all cells in a kernel of their own, as if opened where the notebooks are."""
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=300,
        record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        extra_arguments=["--log-level=ERROR"],
    )
    runs = NOTEBOOKS.parents[1] / "runs"
    # The first cell finds ldjax installed; by itself pip would add what that declares
    # and has no use for (TensorFlow, 2 GB).
    environment = os.environ | {"LDJAX_RUNS": str(runs), "PIP_NO_DEPS": "1"}
    if config.smoke and config.out:
        environment |= {"LDJAX_SMOKE": "1", "LDJAX_RUNS": str(config.out.absolute())}
    client.execute(env=environment)


def keep_reference_only(notebook: Any) -> None:
    """Drop what the next run would change: all outputs but the reference figure."""
    notebook.metadata.pop("language_info", None)  # the version of Python that ran it
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"  # by default drawn anew each time
        if cell.cell_type == "code":
            is_kept = REFERENCE in cell.metadata.get("tags", ())
            cell.outputs = [o for o in cell.outputs if is_kept and _is_figure(o)]
            cell.execution_count = None


def _is_figure(output: Any) -> bool:
    return "image/png" in output.get("data", ())


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
