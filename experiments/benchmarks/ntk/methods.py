"""The ways to the kernel of each case of `benchmarks.ntk`; ours first."""

from typing import Any, Literal

import numpy as np
from jaxtyping import Array

import ldjax
from experiments.benchmarks.ntk.cases import Case
from experiments.benchmarks.ntk.peers import (
    NT3,
    TORCH,
    Method,
    jacrev_einsum,
    lazy,
    lazy_product,
    neural_tangents,
    trunk_products,
)
from experiments.benchmarks.ntk.targets import ALL_PAIRS, ONE_PAIR

__all__ = ["methods_of"]


def ours(
    case: Case,
    params: Any,
    probe: Array,
    update: Array,
    *,
    method: Literal["structured", "factored"] = "factored",
    positions: tuple[int, ...] | None = None,
) -> Any:
    """Our kernel of a case."""
    probe_fn, update_fn = (case.logits_fn(x, positions) for x in (probe, update))
    return ldjax.empirical_ntk(probe_fn, update_fn, params, method=method)


def entries(case: Case, method: Literal["structured", "factored"]) -> Method:
    """All entries of it."""
    return Method(
        f"ldjax {method}",
        "kernel",
        lambda *inputs: ours(case, *inputs, method=method).dense(),
        lambda dense: np.asarray(dense).reshape(case.num_outputs),
    )


def norms(
    case: Case, name: str = "ldjax factored", positions: tuple[int, ...] | None = None
) -> Method:
    """The norms of its blocks, with all else that is told of them."""

    def as_array(summary: Any) -> np.ndarray:
        blocks = np.asarray(summary.norm)[0, :, 0]
        return blocks[-1:, -1:] if name == ALL_PAIRS else blocks

    return Method(
        name,
        "norms",
        lambda *inputs: ours(case, *inputs, positions=positions).block_summary(),
        as_array,
    )


def product(case: Case) -> Method:
    """The product with one vector."""
    return Method(
        "ldjax factored",
        "product",
        lambda *inputs: ours(case, *inputs[:-1]) @ inputs[-1],
        lambda vector: np.asarray(vector).ravel(),
    )


def methods_of(case: Case) -> list[Method]:
    """All ways to a case's kernel; ours first."""
    theirs = [neural_tangents(case, 1), neural_tangents(case, 2)]
    plain = [*theirs, jacrev_einsum(case)]
    match case.name:
        case "D":
            both = [entries(case, "structured"), entries(case, "factored")]
            return [*both, lazy(case), *plain, TORCH]
        case "E":
            both = [entries(case, "structured"), entries(case, "factored")]
            only_norms = norms(case, "ldjax factored, norms only")
            return [*both, only_norms, lazy(case), *plain]
        case "F":
            width = case.params["token_embedding"]["embedding"].shape[1]
            sizes = (16, 64, 128, len(case.positions or ()) * width)
            trunk = [trunk_products(case, size) for size in sizes]
            rows = trunk_products(case, 16, rows_only=True)
            return [norms(case), *trunk, rows, *theirs]
        case "G":
            return [norms(case), trunk_products(case, 16, rows_only=True), *theirs]
        case "H":
            last = case.positions[-1:] if case.positions else ()
            pairs = [norms(case, ONE_PAIR, last), norms(case, ALL_PAIRS)]
            trunk = trunk_products(case, 2, positions=last, rows_only=True)
            return [*pairs, trunk, *theirs]
        case "I":
            return [product(case), lazy_product(case)]
        case _:
            return [entries(case, "structured"), *plain, NT3, TORCH]
