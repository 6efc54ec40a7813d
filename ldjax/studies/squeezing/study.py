"""The squeezing effect in one softmax, from its settings to what was found."""

import contextlib
import functools
from collections.abc import Iterator

import jax

from ldjax import command
from ldjax.runs.folder import Run
from ldjax.studies.squeezing import __doc__ as about
from ldjax.studies.squeezing.figures import draw_figures
from ldjax.studies.squeezing.measure import sweeps, take, toy_rows
from ldjax.studies.squeezing.results import (
    check_claims,
    metric_rows,
    summaries,
    table_of_rows,
)
from ldjax.studies.squeezing.settings import NOTEBOOKS_SEED, Config
from ldjax.studies.study import Findings, conduct
from ldjax.theory.claims import stored


@command.experiment
def main(config: Config) -> int:
    """Run the study; the exit status."""
    with _every_digit():
        return conduct(config, measure=measure)


@contextlib.contextmanager
def _every_digit() -> Iterator[None]:
    """A toy: every digit is to be seen."""
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def measure(config: Config, subject: None, run: Run) -> Findings:
    """Take every step."""
    del subject
    rows = toy_rows(config.seed)
    outcomes = [take(step) for step in (*rows.values(), *sweeps(rows, config.points))]
    run.write_metrics([row for outcome in outcomes for row in metric_rows(outcome)])
    claims = check_claims(outcomes, is_published=config.seed == NOTEBOOKS_SEED)
    return Findings(
        claims=claims,
        summary={"claims": stored(claims), "rows": summaries(outcomes)},
        draw=draw_figures,
        text=table_of_rows(outcomes),
    )


parse = functools.partial(command.parse, Config, about)
