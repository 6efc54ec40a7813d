"""One method of `benchmarks.ntk` in a process of its own; see `measure`."""

from typing import Any

import jax

from experiments.benchmarks.ntk.cases import make_case
from experiments.benchmarks.ntk.measure import Compiled, DoesNotFitError, Row
from experiments.benchmarks.ntk.methods import methods_of
from experiments.benchmarks.ntk.process import serve


class Worker:
    """Answers what `_Elsewhere` asks."""

    def __call__(self, question: tuple[Any, ...]) -> Any:
        """What `_Elsewhere` is told."""
        match question:
            case ("compile", name, seed, row, limit):
                return self._compile(name, seed, row, limit)
            case ("first",):
                return self._compiled.first()
            case _:
                return self._compiled.seconds()

    def _compile(self, name: str, seed: int, row: Row, limit: float) -> Any:
        jax.config.update("jax_enable_compilation_cache", False)
        case = make_case(name, small=False, seed=seed)
        (method,) = [m for m in methods_of(case) if m.name == row.method]
        try:
            self._compiled = Compiled(case, method, row, limit)
        except DoesNotFitError as error:
            return row, error
        return row, None


if __name__ == "__main__":
    serve(Worker())
