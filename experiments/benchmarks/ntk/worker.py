"""One method of `benchmarks.ntk` in a process of its own; see `measure`."""

import jax

from experiments.benchmarks.ntk.cases import make_case
from experiments.benchmarks.ntk.measure import DoesNotFitError, Row, compiled
from experiments.benchmarks.ntk.methods import methods_of
from experiments.benchmarks.ntk.process import Timed, serve_kernel
from ldjax.memory import Bytes


def prepare(
    name: str, seed: int, row: Row, limit: Bytes
) -> tuple[Timed | None, tuple[Row, DoesNotFitError | None]]:
    """The method of a row, compiled; the row, and the error where it does not fit."""
    jax.config.update("jax_enable_compilation_cache", False)
    case = make_case(name, small=False, seed=seed)
    (method,) = [m for m in methods_of(case) if m.name == row.method]
    try:
        return compiled(case, method, row, limit), (row, None)
    except DoesNotFitError as error:
        return None, (row, error)


if __name__ == "__main__":
    serve_kernel(prepare)
