"""How `benchmarks.ntk` measures a case: what fits, how long, how large, how equal."""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from experiments.benchmarks.ntk.cases import Case
from experiments.benchmarks.ntk.peers import NT3, TORCH, Method
from experiments.benchmarks.ntk.process import First, Remote, Timed
from ldjax import memory
from ldjax.models import Transformer
from ldjax.ntk import plan

__all__ = [
    "DoesNotFitError",
    "Row",
    "compiled",
    "matmul_rate",
    "measure",
    "num_repeats",
]

_HERE = "experiments.benchmarks.ntk"
# Above this a run is slow, and has fewer repeats.
_SLOW_SECONDS = 5.0
# A faster one runs once untimed before: what others left in the caches, and threads
# that sleep, double the time of a run of some 20 ms.
_COLD_SECONDS = 1.0
# Of all cores: below this nothing is running.
_IDLE_PERCENT = 10.0
# Farther above the limit by the plan, a method is not even compiled: that alone takes
# minutes. Nearer, XLA's own figure decides.
_PLAN_ERROR = 2.0
# The one that the others are compared with, if it ran; otherwise the next.
_REFERENCES = ("neural-tangents 2", "neural-tangents 1", "trunk", "ldjax lazy")


@dataclass
class Row:
    """What is known of one method on one case; None where it did not run.

    Attributes:
      case: Its name.
      method: Its name.
      output: What it makes: "kernel", "norms" or "product".
      seconds: Median of its runs.
      repeats: How many.
      compile_seconds: Tracing, planning and compilation.
      planned_bytes: Temporaries and result by `ldjax.ntk.plan`, before compilation.
      bytes: The same as XLA plans them; of torch, growth of its process.
      resident_bytes: Of its process at its highest, while it ran first.
      difference: Relative Frobenius distance to the reference.
      matmul_fraction: Its rate of counted FLOPs over the machine's own.
      note: Why it did not run, or that it is the reference.
    """

    case: str
    method: str
    output: str
    seconds: float | None = None
    repeats: int = 0
    compile_seconds: float | None = None
    planned_bytes: int | None = None
    bytes: int | None = None
    resident_bytes: int | None = None
    difference: float | None = None
    matmul_fraction: float | None = None
    note: str = ""


class Runner(Protocol):
    """A method that is ready to run."""

    def first(self) -> First:
        """The first run, with its result and the memory of the process."""
        ...

    def seconds(self) -> float:
        """The seconds of one more run."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class DoesNotFitError(Exception):
    """A method that needs more memory than there is; says how much."""

    def __str__(self) -> str:
        return f"out of memory (needs {memory.human_bytes(self.args[0])})"


def measure(
    case: Case,
    methods: Sequence[Method],
    *,
    repeats: int,
    limit: memory.Bytes,
    seed: int | None = None,
    nt3_python: Path | None = None,
) -> list[Row]:
    """Rows of all methods, measured where they fit.

    Args:
      case: What all of them compute.
      methods: In the order of the rows.
      repeats: Timed runs of each.
      limit: Bytes a method may plan for.
      seed: Of the case, for each method to make it again in a process of its own.
        None: all run in this one, and XLA does not take its time; for the numbers.
      nt3_python: What runs `nt3`.
    """
    rows, runners, results = [], [], {}
    for method in methods:
        rows.append(row := Row(case.name, method.name, method.output))
        try:
            if method == TORCH:
                runner: Runner = _torch(case, limit)
            elif method == NT3:
                runner = _old_jax(case, row, nt3_python)
            elif seed is None:
                runner = compiled(case, method, row, limit, optimize=False)
            else:
                runner = _elsewhere(case, row, limit, seed)
            first = runner.first()
        except Exception as error:  # the others go on; it is reported
            failed = not isinstance(error, DoesNotFitError | ModuleNotFoundError)
            row.note = f"failed: {error!r}"[:200] if failed else str(error)
            continue
        results[method.name], row.resident_bytes = first.result, first.peak
        if method == TORCH:
            row.bytes = first.peak - first.start
        runners.append((row, runner, first.seconds))
    _time_in_turns(runners, repeats, when_idle=seed is not None)
    for _, runner, _ in runners:
        runner.close()
    _compare(case, rows, results)
    return rows


def _time_in_turns(
    runners: list[tuple[Row, Runner, float]], repeats: int, *, when_idle: bool
) -> None:
    """Medians, all runners in turn in every round; slow ones sit the last ones out."""
    times: list[list[float]] = [[] for _ in runners]
    for number in range(repeats):
        for (_, runner, first), seconds in zip(runners, times, strict=True):
            if number < num_repeats(first, repeats):
                if when_idle:
                    _wait_until_idle()
                if first < _COLD_SECONDS:
                    runner.seconds()
                seconds.append(runner.seconds())
    for (row, _, first), seconds in zip(runners, times, strict=True):
        # Of a very slow one the first run is all there is.
        row.seconds = float(np.median(seconds or [first]))
        row.repeats = len(seconds) or 1


def _wait_until_idle(patience: int = 50) -> None:
    """Wait while the machine works off what the last method left to it.

    To give back 3 GB takes a quarter of a second after the result is there, at the
    cost of half the next method's speed.
    """
    for _ in range(patience):
        if psutil.cpu_percent(interval=0.1) < _IDLE_PERCENT:
            return


def num_repeats(first: float, repeats: int) -> int:
    """Repeats of a method whose first run took so long; 0: it was enough."""
    if first <= _SLOW_SECONDS:
        return repeats
    return int(repeats * _SLOW_SECONDS / first)


def compiled(
    case: Case,
    method: Method,
    row: Row,
    limit: memory.Bytes,
    *,
    optimize: bool = True,
) -> Timed:
    """A method in JAX, in this process; what is known of it is noted in its row.

    Raises:
      DoesNotFitError: It needs more than the limit.
    """
    assert method.fn is not None
    start = time.perf_counter()
    jitted = jax.jit(method.fn)  # traced once, for the plan and to be compiled
    row.planned_bytes = planned_bytes(case, jitted)
    if row.planned_bytes > _PLAN_ERROR * limit:
        raise DoesNotFitError(row.planned_bytes)
    lowered = jitted.lower(case.params, *case.inputs)
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    program = lowered.compile(compiler_options=None if optimize else options)
    row.compile_seconds = time.perf_counter() - start
    row.bytes = compiled_bytes(program)
    if row.bytes > limit:
        raise DoesNotFitError(row.bytes)
    run = lambda: jax.block_until_ready(program(case.params, *case.inputs))
    return Timed(run, method.as_array)


def _elsewhere(case: Case, row: Row, limit: memory.Bytes, seed: int) -> Remote:
    """The same in a process of its own."""
    kernel = Remote(f"{_HERE}.worker", case.name, seed, row, limit)
    noted, error = kernel.told
    for field in dataclasses.fields(row):
        setattr(row, field.name, getattr(noted, field.name))
    if error is not None:
        kernel.close()
        raise error
    return kernel


def _torch(case: Case, limit: memory.Bytes) -> Remote:
    """The same kernel in torch's process."""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("torch is not installed")
    needed = _torch_bytes(case)
    if needed > limit:
        raise DoesNotFitError(needed)
    static = {}
    if isinstance(case.module, Transformer):
        config = case.module.config
        static = {
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "epsilon": config.norm_epsilon,
            "positions": case.positions,
        }
    return Remote(f"{_HERE}.torch_func", case.name, *_as_numpy(case), static)


def _old_jax(case: Case, row: Row, python: Path | None) -> Remote:
    """Neural-tangents' third implementation in its own Python."""
    if python is None:
        raise ModuleNotFoundError("--nt3-python is not given")
    kernel = Remote(f"{_HERE}.nt3", case.name, *_as_numpy(case), python=python)
    row.compile_seconds = kernel.told
    return kernel


def _as_numpy(
    case: Case,
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Parameters by their path, and the inputs, for those who do not know ours."""
    leaves = jax.tree_util.tree_leaves_with_path(case.params)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    params = {name(path): np.asarray(leaf) for path, leaf in leaves}
    probe, update = (np.asarray(x) for x in case.inputs)
    return params, (probe, update)


def planned_bytes(case: Case, fn: Callable[..., Any]) -> int:
    """What a method will take by ldjax's plan, before it is compiled."""
    logits_fn = lambda params: case.apply(params, case.inputs[0])
    builders = {"fn": lambda _, __, params, **___: fn(params, *case.inputs)}
    (planned,) = plan(logits_fn, logits_fn, case.params, methods=builders)
    return planned.peak_bytes


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled function will take beside its arguments, before it runs."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _torch_bytes(case: Case) -> int:
    """Both Jacobians: what torch needs at least."""
    return 4 * sum(case.num_outputs) * sum(x.size for x in jax.tree.leaves(case.params))


def _compare(case: Case, rows: list[Row], results: dict[str, np.ndarray]) -> None:
    """Set each row's difference from the reference."""
    ordered = [
        row
        for name in _REFERENCES
        for row in rows
        if row.method.startswith(name) and row.method in results
    ]
    if not ordered:
        return
    reference = ordered[0]
    reference.note = "reference"
    for row in rows:
        if (result := results.get(row.method)) is None:
            continue
        expected = results[reference.method]
        if row.output == "norms" and reference.output == "kernel":
            expected = _norms(expected, len(case.positions or ()))
            # of one pair, the last
            expected = expected[-result.shape[0] :, -result.shape[1] :]
        difference = np.linalg.norm(result - expected) / np.linalg.norm(expected)
        row.difference = float(difference)


def _norms(matrix: np.ndarray, num_positions: int) -> np.ndarray:
    """Frobenius norm of each block of a kernel of one example on each side."""
    vocab = matrix.shape[0] // num_positions
    blocks = matrix.reshape(num_positions, vocab, num_positions, vocab)
    return np.linalg.norm(blocks, axis=(1, 3))


def matmul_rate(size: int, repeats: int = 9) -> float:
    """FLOPs per second of this machine's own float32 product of square matrices."""
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    run: Callable[[], Any] = lambda: jax.block_until_ready(product(matrix))
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / float(np.median(seconds))
