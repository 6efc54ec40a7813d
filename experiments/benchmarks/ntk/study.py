"""The exact kernel, side by side: ours, neural-tangents, plain JAX and torch.

Claim: the targets of `targets` (cases A to I), and LeNet not slower
than neural-tangents' best. Run it with

    python -m experiments.benchmarks.ntk.study --all --out runs/ntk

(without `--all`, case H, which takes minutes, is left out). The methods of a case run
in turn, each in a process of its own and when the machine is idle, in float32 at full
matmul precision. Times are medians after compilation; a method that takes more than 5 s
a run gets fewer repeats. Memory is what XLA plans for temporaries and results; for
torch the growth of its process. What would not fit is not run: the table says what it
needs. All numbers of a case are compared with those of one peer. The targets are for
two idle cores. Exits with status 1 and one line for each target that is missed and each
number that differs. Without torch (it is no dependency: `pip install torch`) its rows
are empty, and without `--nt3-python` those of neural-tangents' third implementation.
"""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.benchmarks.ntk.cases import CASES, Case, make_case
from experiments.benchmarks.ntk.measure import Row, matmul_rate, measure
from experiments.benchmarks.ntk.methods import methods_of
from experiments.benchmarks.ntk.targets import ONE_PAIR, Checked, check_targets
from ldjax import command, memory
from ldjax.runs.folder import Run, create_run

# Largest relative Frobenius distance of two methods' numbers, in float32.
TOLERANCE = 1e-4
# What takes long to compile and is checked on another case.
NOT_IN_SMOKE = {
    "D": ("ldjax lazy", "neural-tangents 1", "jacrev"),
    "F": ("neural-tangents 1", "trunk NTK-vp, "),
    "G": ("neural-tangents",),
    "H": ("neural-tangents",),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured."""

    cases: str = ""
    """Which, separated by commas; by default all but H, in a smoke run those that
    differ at that size."""
    all: bool = False
    """Every case, H too."""
    methods: str = ""
    """Only methods whose name contains one of these, separated by commas."""
    repeats: int = 5
    """Timed runs of each method, in turns."""
    memory_limit: float | None = None
    """What a method may take, in GB; by default 80 % of the free memory."""
    nt3_python: Path | None = None
    """Python that has JAX <= 0.4.20 and neural-tangents, for its third implementation
    (see `nt3`); not measured if not given."""
    seed: int = 0
    """Of parameters and examples."""
    out: Path | None = None
    """Folder for the run, with `ntk.md`; printed only if not given."""
    overwrite: bool = False
    """Replace a run that is already there."""
    smoke: bool = False
    """Tiny sizes; checks that the numbers agree, not the targets."""


@command.experiment
def main(config: Config) -> int:
    """Print the tables; the exit status."""
    names = case_names(config)
    if unknown := [name for name in names if name not in CASES]:
        return complain([f"--cases: {unknown[0]!r} is none of {', '.join(CASES)}."])
    try:
        run = make_run(config)
    except FileExistsError as error:
        return complain([str(error)])
    lines, rows = caption(config), []
    print("\n".join(lines), flush=True)
    for name in names:
        case = make_case(name, small=config.smoke, seed=config.seed)
        measured = measure_case(case, config)
        print("\n".join(section := table(case, measured)), flush=True)
        rows, lines = rows + measured, lines + section
        del case  # before the next one's memory
    checked = [] if config.smoke else check_targets(rows)
    failures = [f"missed: {target}" for target in checked if target.holds is False]
    failures += faults(rows)
    section = target_table(checked) if checked else []
    print("\n".join(section))
    if run is not None:
        (run.path / "ntk.md").write_text("\n".join(lines + section) + "\n")
        run.write_metrics(metrics(rows))
        run.write_summary(
            {
                "rows": [dataclasses.asdict(row) for row in rows],
                "targets": [target._asdict() for target in checked],
                "failures": failures,
            }
        )
        print(f"\n{run.path / 'ntk.md'}\n{run.path / 'summary.json'}")
    return complain(failures)


def case_names(config: Config) -> list[str]:
    """The cases to run."""
    if config.all:
        return list(CASES)
    if config.cases:
        return config.cases.split(",")
    if config.smoke:
        return ["A", "B", "D", "F", "I"]
    return [name for name in CASES if name != "H"]


def complain(lines: list[str]) -> int:
    """Print what is wrong, a line each; the exit status."""
    for line in lines:
        print(f"ntk: {line}", file=sys.stderr)
    return 1 if lines else 0


def make_run(config: Config) -> Run | None:
    """The run folder, if one is asked for."""
    if config.out is None:
        return None
    settings = dataclasses.asdict(config)
    return create_run(config.out, settings, overwrite=config.overwrite)


def measure_case(case: Case, config: Config) -> list[Row]:
    """The rows of a case."""
    wanted = config.methods.split(",")
    methods = [m for m in methods_of(case) if any(part in m.name for part in wanted)]
    if config.smoke:
        left_out = NOT_IN_SMOKE.get(case.name, ())
        methods = [m for m in methods if not m.name.startswith(left_out)]
    limit = config.memory_limit
    rows = measure(
        case,
        methods,
        repeats=1 if config.smoke else config.repeats,
        limit=memory.default_limit() if limit is None else 1e9 * limit,
        seed=None if config.smoke else config.seed,
        nt3_python=config.nt3_python,
    )
    if case.name == "H":
        rate = matmul_rate(128 if config.smoke else 2048)
        for row in rows:
            if row.method == ONE_PAIR and row.seconds:
                flops = contraction_flops(case, num_positions=1)
                row.matmul_fraction = flops / row.seconds / rate
                row.note = (
                    f"{flops / row.seconds / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s, "
                    f"{row.matmul_fraction:.0%}"
                )
    return rows


def contraction_flops(case: Case, *, num_positions: int) -> float:
    """FLOPs of our contraction for the last update positions of a decoder.

    `width` basis vectors for each; for each of them a backward pass to the layers'
    outputs on the update side and a forward pass on the probe side, each a product of
    every token with every matrix of the blocks. Attention's own products are left out.
    """
    blocks = {k: v for k, v in case.params.items() if k.startswith("blocks_")}
    weights = sum(leaf.size for leaf in jax.tree.leaves(blocks) if leaf.ndim == 2)
    length = case.inputs[0].shape[1]
    width = case.params["token_embedding"]["embedding"].shape[1]
    return 2.0 * 2.0 * weights * length * width * num_positions


def faults(rows: list[Row]) -> list[str]:
    """Methods that failed, and numbers that are not those of the reference."""
    lines = []
    for row in rows:
        if row.note.startswith("failed"):
            lines.append(f"{row.case}, {row.method}: {row.note}")
        elif row.difference is not None and not row.difference <= TOLERANCE:
            lines.append(
                f"{row.case}, {row.method}: numbers differ by {row.difference:.1e}, "
                f"allowed {TOLERANCE:.0e}"
            )
    return lines


def caption(config: Config) -> list[str]:
    """What the tables show."""
    import psutil

    repeats = 1 if config.smoke else config.repeats
    return [
        f"Medians of {repeats} interleaved runs (fewer where one takes more than 5 s: "
        "in brackets), float32, "
        f"{len(psutil.Process().cpu_affinity())} cores, load {os.getloadavg()[0]:.1f} "
        "before the start. Memory: temporaries and result as XLA plans them; torch: "
        "growth of its process. Difference: relative, Frobenius, from the reference.",
    ]


def table(case: Case, rows: list[Row]) -> list[str]:
    """The rows of a case in Markdown."""
    return [
        "",
        f"**{case.name}**: {case.title}",
        "",
        "| method | makes | time | compile | memory | difference | |",
        "|---|---|---:|---:|---:|---:|---|",
        *(
            f"| {row.method} | {row.output} | {human_time(row.seconds)}"
            f"{f' ({row.repeats})' if row.repeats else ''} "
            f"| {human_time(row.compile_seconds)} "
            f"| {'–' if row.bytes is None else memory.human_bytes(row.bytes)} "
            f"| {'–' if row.difference is None else f'{row.difference:.0e}'} "
            f"| {row.note} |"
            for row in rows
        ),
    ]


def target_table(checked: list[Checked]) -> list[str]:
    """The targets in Markdown."""
    answers = {True: "yes", False: "**no**", None: "not measured"}
    lines = [
        f"| {target.words} | {'–' if target.value is None else f'{target.value:.3g}'} "
        f"| {answers[target.holds]} |"
        for target in checked
    ]
    return ["", "| target | measured | holds |", "|---|---:|---|", *lines]


def human_time(seconds: float | None) -> str:
    """Seconds as people write them."""
    if seconds is None:
        return "–"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def metrics(rows: list[Row]) -> list[tuple[Any, ...]]:
    """The numbers as a long table: the case is the probe, the method the type."""
    quantities = ("seconds", "compile_seconds", "planned_bytes", "bytes")
    quantities += ("resident_bytes", "difference")
    return [
        (0, 0, row.case, row.method, quantity, float(value))
        for row in rows
        for quantity in quantities
        if (value := getattr(row, quantity)) is not None
    ]


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
