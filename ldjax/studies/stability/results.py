"""From what `kernel_stability.py` measured to its numbers, identities and verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ldjax.finetune.prepare import Prepared
from ldjax.finetune.settings.config import Config as StageConfig
from ldjax.runs.checkpoints import Table
from ldjax.studies.statistics import rank_correlations
from ldjax.theory.claims import Claim
from ldjax.theory.proxies import (
    accumulated_influence,
    published_lower_bound_kernel,
    published_sign_delta,
)
from ldjax.watch.probes import Probe
from ldjax.watch.record import TRAIN, probe_name, series_rows, set_of

__all__ = [
    "check_identities",
    "kernels_of",
    "long_table",
    "study",
    "tightness",
    "verdicts",
]

#: What float32 may lose of a norm.
ROUNDING = 1e-4
#: Spearman's correlation from which on an order is called stable (as in `mnist.py`),
#: and a proxy informative.
STABLE, INFORMATIVE = 0.9, 0.5

#: By what the responses are put in order.
_ORDERS = {
    "norm": "|K|",
    "norm_per_token": "|K| over the root of their tokens",
    "influence:predicted": "what a step does to them",
}
PROXIES = (
    "lbk:predicted",
    "lbk:measured",
    "lbk:published",
    "sign_delta:predicted",
    "sign_delta:measured",
)


def kernels_of(table: Table) -> list[str]:
    """The kernels that were measured, by name."""
    quantities = [name.split(":") for name in table["kernel"]]
    return [parts[0] for parts in quantities if parts[1:] == ["norm"]]


def check_identities(stage: str, table: Table) -> list[Claim]:
    """What holds whatever the run does, up to rounding in float32."""
    series = table["kernel"]
    checks = {
        "K G of a token, by the factors - along the parameters": series["push_gap"],
        "norms of blocks - norms of their columns": series["columns_gap"],
        "norms of learned blocks - those of the transposed": series["symmetry_gap"],
    }
    return [
        Claim(
            f"{stage}: {name}: {value:.1e} of them (at most {ROUNDING:.0e})",
            value <= ROUNDING,
            "identity",
            numbers={"value": value, "bound": ROUNDING},
        )
        for name, value in ((name, float(gaps.max())) for name, gaps in checks.items())
    ]


def study(
    table: Table, probes: Sequence[Probe], evaluated: Sequence[Probe]
) -> dict[str, Any]:
    """The numbers of a stage, ready for JSON.

    Args:
      table: From the training loop, with the series `kernel` and `evaluated`.
      probes: Those of the kernels.
      evaluated: Those of the authors' evaluations.

    Returns:
      `steps`, `types`, the intervals' `published` proxies, and for each of `kernels`
      its `norm` and `drift`, the `stability` of the orders and what the `proxies` know.
    """
    series, places = table["kernel"], _by_prompt(probes)
    types = [probes[place].type for place in places[0]]
    num_tokens = np.array([probe.example.num_scored for probe in probes])
    published = _published(table["evaluated"], evaluated, types)
    kernels = {}
    for kernel in kernels_of(table):
        # [time, prompt, type]
        values = {
            name.removeprefix(f"{kernel}:"): numbers[:, places].astype(float)
            for name, numbers in series.items()
            if name.startswith(f"{kernel}:")
        }
        norm = values["norm"]
        values["norm_per_token"] = norm / np.sqrt(num_tokens[places])
        kernels[kernel] = {
            "norm": norm.mean(1).T.tolist(),
            "distance_from_identity": (values["distance"] / norm).mean(1).T.tolist(),
            "drift": {
                "from_start": (norm / norm[0]).mean(1).T.tolist(),
                "from_previous": (norm[1:] / norm[:-1]).mean(1).T.tolist(),
            },
            "stability": {name: _stability(values[name]) for name in _ORDERS},
            "proxies": {name: _agreement(values[name], norm) for name in PROXIES}
            | {
                f"{name} over intervals": _agreement(
                    np.array(numbers).T[:, None], norm[:-1].mean(1, keepdims=True)
                )
                for name, numbers in published.items()
                if name in ("lbk", "sign_delta")
            },
            "tightness": {
                name: _spread(values[name] / norm**2)
                for name in ("lbk:predicted", "lbk:measured")
            },
        }
    return {
        "steps": series["step"].tolist(),
        "types": types,
        "published": published,
        "kernels": kernels,
    }


def verdicts(studies: Mapping[str, Any]) -> list[Claim]:
    """Whether the paper's assumption and its proxies hold up, with the number."""
    found = []
    for stage, numbers in studies.items():
        for kernel, of_kernel in numbers["kernels"].items():
            for quantity, told in _ORDERS.items():
                stability = of_kernel["stability"][quantity]
                text = f"{stage}, {kernel}: Spearman of the responses' order by {told}"
                found += [
                    _verdict(
                        f"{text}, lowest between successive times",
                        stability["successive"],
                        STABLE,
                    ),
                    _verdict(
                        f"{text}, start and end", stability["start_to_end"], STABLE
                    ),
                ]
        found += [
            _verdict(
                f"{stage}, K: Spearman of {proxy} and the exact norm over responses",
                agreement["mean"],
                INFORMATIVE,
            )
            for proxy, agreement in numbers["kernels"]["K"]["proxies"].items()
        ]
    return found


def tightness(studies: Mapping[str, Any]) -> str:
    """How far below the squared norm LBK stays, in words."""
    return "\n".join(
        f"{stage}, {kernel}: LBK of the {name.removeprefix('lbk:')} change over rate² "
        f"|{kernel}|²: median {ratio['median']:.1e}, largest {ratio['largest']:.1e}"
        for stage, numbers in studies.items()
        for kernel, of_kernel in numbers["kernels"].items()
        for name, ratio in of_kernel["tightness"].items()
    )


def _verdict(text: str, value: float, bound: float) -> Claim:
    return Claim(
        f"{text}: {value:.3f} (> {bound:g})",
        value > bound,
        "finding",
        numbers={"value": value, "bound": bound},
    )


def _by_prompt(probes: Sequence[Probe]) -> np.ndarray:
    """Places of the probes, `[prompt, type]`."""
    names = np.array([probe.prompt_name for probe in probes])
    prompts = dict.fromkeys(names.tolist())
    return np.stack([np.flatnonzero(names == prompt) for prompt in prompts])


def _stability(values: np.ndarray) -> dict[str, Any]:
    """How alike the orders of the types are at all pairs of times."""
    matrices = [rank_correlations(*values[:, i]) for i in range(values.shape[1])]
    mean = np.mean(matrices, axis=0)
    return {
        "successive": float(np.diagonal(mean, 1).min()),
        "start_to_end": float(mean[0, -1]),
        "lowest": float(np.min(matrices)),
        "matrix": mean.tolist(),
    }


def _agreement(proxy: np.ndarray, norm: np.ndarray) -> dict[str, float]:
    """Spearman of a proxy's size and the norm, over types, and over times as well."""
    size = np.abs(proxy)
    over_types = [
        rank_correlations(size[at], norm[at])[0, 1] for at in np.ndindex(norm.shape[:2])
    ]
    over_all = [
        rank_correlations(size[:, i].ravel(), norm[:, i].ravel())[0, 1]
        for i in range(norm.shape[1])
    ]
    return {
        "mean": float(np.mean(over_types)),
        "lowest": float(np.min(over_types)),
        "with_times": float(np.mean(over_all)),
    }


def _spread(ratio: np.ndarray) -> dict[str, float]:
    """Of a lower bound over what it bounds."""
    return {
        "median": float(np.median(ratio)),
        "largest": float(ratio.max()),
        "smallest": float(ratio.min()),
    }


def _published(
    series: Mapping[str, np.ndarray], probes: Sequence[Probe], types: Sequence[str]
) -> dict[str, list[list[float]]]:
    """The proxies of the authors' code over the trained prompts, `[type, interval]`.

    `A_norm` is that of each type, `p_e` that of chosen, as in their corrected code.
    """
    is_trained = [set_of(probe.prompt_name) == TRAIN for probe in probes]
    of = np.array([probe.type for probe in probes])

    def numbers(quantity: str, type_: str) -> np.ndarray:
        return series[quantity][:, is_trained & (of == type_)].astype(float)

    found: dict[str, list[list[float]]] = {
        name: [] for name in ("lbk", "sign_delta", "lbk_accumulated")
    }
    for type_ in types:
        arrays = (
            numbers("log_prob", type_),
            numbers("adaptation_norm_published", type_),
            numbers("residual_norm_published", "chosen"),
        )
        lbk = published_lower_bound_kernel(*arrays)
        found["lbk"].append(lbk.tolist())
        found["sign_delta"].append(published_sign_delta(*arrays).tolist())
        found["lbk_accumulated"].append([float(accumulated_influence(lbk))])
    return found


def long_table(stage: StageConfig, setup: Prepared, table: Table) -> pl.DataFrame:
    """A stage's part of `metrics.parquet`; probes are called `STAGE/SET/PROMPT`."""
    of_series = {
        "kernel": setup.watched.tracked.probes,
        "evaluated": setup.watched.observed.probes,
    }
    named = {
        series: tuple(
            probe._replace(
                prompt_name=probe_name(stage.objective.loss, probe.prompt_name)
            )
            for probe in probes
        )
        for series, probes in of_series.items()
    }
    return series_rows(table, named, examples_per_step=stage.recipe.batch_size)
