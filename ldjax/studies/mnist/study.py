"""Learning dynamics of digits, from the settings to what was found."""

import dataclasses
import functools
from typing import Any

from ldjax import command
from ldjax.data import Images, load_digits, load_mnist
from ldjax.runs.folder import Run
from ldjax.runs.sinks import check_sinks, make_sink
from ldjax.studies.mnist import __doc__ as about
from ldjax.studies.mnist.claims import check_claims, check_identities
from ldjax.studies.mnist.figures import draw_figures
from ldjax.studies.mnist.measure import collect
from ldjax.studies.mnist.settings import Config
from ldjax.studies.study import Findings, conduct
from ldjax.theory.claims import stored


@command.experiment
def main(config: Config) -> int:
    """Run the study; the exit status."""
    return conduct(config, prepare=find_images, measure=measure, describe=describe)


def find_images(config: Config) -> Images:
    """MNIST where it is asked for, otherwise the bundled digits."""
    check_sinks(config.log)
    if config.data == "MNIST":
        return load_mnist(
            config.mnist_dir, seed=config.seed, num_train=config.num_train
        )
    return load_digits(seed=config.seed, num_train=config.num_train)


def describe(config: Config, images: Images) -> dict[str, Any]:
    """What `config.json` says of the run."""
    del images
    reductions = {"loss": "mean over the batch", "probes": "mean over a class"}
    return dataclasses.asdict(config) | {"data": config.data, "reductions": reductions}


def measure(config: Config, images: Images, run: Run) -> Findings:
    """Train, and judge what was collected."""
    sinks = [make_sink(name, run) for name in config.log]
    results = collect(config, images)
    run.write_metrics(results.rows)
    for sink in sinks:
        sink.write(run.metrics())
        sink.close()
    identities = check_identities(results)
    claims = [] if config.smoke else check_claims(results)
    return Findings(
        claims=[*identities, *claims],
        summary={"claims": stored(claims), "identities": stored(identities)},
        draw=draw_figures,
    )


parse = functools.partial(command.parse, Config, about)
