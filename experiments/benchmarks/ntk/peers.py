"""What `benchmarks.ntk` compares with: other ways to the same kernel in JAX.

Each is as fast and as small as a careful user of it would have it: neural-tangents is
told that examples are independent (`vmap_axes=0`), and Jacobians are taken example by
example.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import ldjax
from experiments.benchmarks.ntk.cases import Case
from ldjax.models import Transformer
from ldjax.ntk.neural_tangents import load_neural_tangents

__all__ = [
    "NT3",
    "TORCH",
    "Method",
    "block_norms",
    "jacrev_einsum",
    "lazy",
    "lazy_product",
    "neural_tangents",
    "trunk_products",
]

Output = Literal["kernel", "norms", "product"]


class Method(NamedTuple):
    """One way to a kernel.

    Attributes:
      name: In the table.
      output: Whether it makes all entries, the norm of each block (a pair of
        positions), or the product with one vector.
      fn: `(params, *case.inputs) -> result`, to be compiled; None of those that
        are no code for this JAX.
      as_array: What to compare of the result: a matrix over the ravelled logits of
        the two sides, norms `[probe pos, update pos]`, or a vector.
    """

    name: str
    output: Output
    fn: Callable[..., Any] | None
    as_array: Callable[[Any], np.ndarray]


TORCH = Method("torch.func", "kernel", None, np.asarray)
NT3 = Method("neural-tangents 3", "kernel", None, np.asarray)


def neural_tangents(case: Case, number: Literal[1, 2]) -> Method:
    """Neural-tangents' Jacobian contraction (1) or NTK-vector products (2)."""
    nt = load_neural_tangents()
    name = {1: "JACOBIAN_CONTRACTION", 2: "NTK_VECTOR_PRODUCTS"}[number]
    kernel_fn = nt.empirical_ntk_fn(
        case.apply,
        trace_axes=(),
        diagonal_axes=(),
        vmap_axes=0,
        implementation=nt.NtkImplementation[name],
    )

    def kernel(params: Any, probe: Array, update: Array) -> Array:
        with jax.default_matmul_precision("highest"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own
            return kernel_fn(probe, update, params)

    def as_array(interleaved: Array) -> np.ndarray:
        axes = range(interleaved.ndim)
        ordered = np.asarray(interleaved).transpose(*axes[::2], *axes[1::2])
        return ordered.reshape(case.num_outputs)

    return Method(f"neural-tangents {number}", "kernel", kernel, as_array)


def jacrev_einsum(case: Case) -> Method:
    """The Jacobian of every example, then one contraction for each parameter."""

    def jacobian(params: Any, tokens: Array) -> Any:
        single = lambda params, x: case.apply(params, x[None]).ravel()
        return jax.vmap(jax.jacrev(single), (None, 0))(params, tokens)

    def kernel(params: Any, probe: Array, update: Array) -> Array:
        def contract(left: Array, right: Array) -> Array:
            flat = (x.reshape(*x.shape[:2], -1) for x in (left, right))
            return jnp.einsum("nap,mbp->namb", *flat)

        with jax.default_matmul_precision("highest"):
            left, right = jacobian(params, probe), jacobian(params, update)
            return jax.tree.reduce(jnp.add, jax.tree.map(contract, left, right))

    as_array = lambda blocks: np.asarray(blocks).reshape(case.num_outputs)
    return Method("jacrev + einsum", "kernel", kernel, as_array)


def lazy(case: Case) -> Method:
    """`ldjax.jacobian(...) @ ldjax.jacobian(...).T` on every basis vector."""

    def kernel(params: Any, probe: Array, update: Array) -> Array:
        return _lazy(case, params, probe, update).dense()

    as_array = lambda dense: np.asarray(dense).reshape(case.num_outputs)
    return Method("ldjax lazy", "kernel", kernel, as_array)


def lazy_product(case: Case) -> Method:
    """The same on one vector: a backward and a forward pass."""

    def product(params: Any, probe: Array, update: Array, vector: Array) -> Array:
        return _lazy(case, params, probe, update) @ vector

    return Method("ldjax lazy", "product", product, lambda v: np.asarray(v).ravel())


def trunk_products(
    case: Case,
    batch_size: int,
    *,
    positions: tuple[int, ...] | None = None,
    rows_only: bool = False,
) -> Method:
    """NTK-vector products in the space of parameters, of the trunk instead of logits.

    `width * num_positions` of them instead of `vocab * num_positions`: what is left to
    do without the factorisation by layers. `batch_size` at a time. With `rows_only`
    the parameters hold no embedding row but of the tokens that occur.
    """
    chosen = case.positions if positions is None else positions
    assert chosen is not None

    def kernel(params: Any, probe: Array, update: Array) -> Array:
        del probe, update  # known to the case
        trunk = _trunk(case, params, chosen, rows_only=rows_only)
        with jax.default_matmul_precision("highest"):
            _, jvp = jax.linearize(trunk.probe_fn, trunk.params)
            hidden, vjp = jax.vjp(trunk.update_fn, trunk.params)

            def column(index: Array) -> Array:
                cotangent = jnp.zeros(hidden.size).at[index].set(1)
                return jvp(*vjp(cotangent.reshape(hidden.shape)))

            return jax.lax.map(column, jnp.arange(hidden.size), batch_size=batch_size)

    def as_array(columns: Array) -> np.ndarray:
        trunk_kernel = np.asarray(columns).reshape(len(chosen), -1, *columns.shape[1:])
        return block_norms(case, trunk_kernel.transpose(2, 3, 0, 1), chosen)

    kind = "trunk NTK-vp of occurring rows" if rows_only else "trunk NTK-vp"
    return Method(f"{kind}, {batch_size} at a time", "norms", kernel, as_array)


def block_norms(
    case: Case, trunk_kernel: np.ndarray, positions: tuple[int, ...]
) -> np.ndarray:
    r"""Frobenius norm of each block of a tied decoder's kernel, in float64.

    With the tokens that occur as rows of the one-hot P and E the embedding,

    .. math:: K = E C E^\top + c I + P R_u E^\top + E R_o P^\top = Q B Q^\top + c I,
              \quad Q = [E | P]

    for a tied linear head on a trunk: a witness of our norms that shares no code with
    them.

    Args:
      case: One example on each side.
      trunk_kernel: C, `[probe_pos, width, update_pos, width]`.
      positions: Those of C.
    """
    trunk = _trunk(case, case.params, positions, rows_only=True)
    ids = trunk.ids

    def hidden_and_rows(fn: Callable[[Any], Array]) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states `[pos, width]`, and their derivative by the rows of E."""

        def of_rows(rows: Array) -> Array:
            return fn({**trunk.params, "token_embedding": {"embedding": rows}})

        @jax.jit
        def both(rows: Array) -> tuple[Array, Array]:
            hidden, vjp = jax.vjp(of_rows, rows)
            basis = jnp.eye(hidden.size).reshape(-1, *hidden.shape)
            return hidden, jax.lax.map(lambda e: vjp(e)[0], basis, batch_size=32)

        hidden, by_rows = both(trunk.params["token_embedding"]["embedding"])
        by_rows = by_rows.reshape(*hidden.shape, *by_rows.shape[1:])
        return np.asarray(hidden, float), np.asarray(by_rows, float)

    with jax.default_matmul_precision("highest"):
        probe, by_probe = hidden_and_rows(trunk.probe_fn)
        update, by_update = hidden_and_rows(trunk.update_fn)
    embedding = np.asarray(case.params["token_embedding"]["embedding"], float)
    gram = np.block(
        [
            [embedding.T @ embedding, embedding[ids].T],
            [embedding[ids], np.eye(len(ids))],
        ]
    )
    norms = np.zeros((len(positions), len(positions)))
    for m, l in np.ndindex(*norms.shape):
        c = probe[m] @ update[l]
        rows_update = np.einsum("k,jsk->sj", probe[m], by_update[l])
        rows_probe = np.einsum("k,isk->is", update[l], by_probe[m])
        zeros = np.zeros((len(ids), len(ids)))
        core = np.block([[trunk_kernel[m, :, l], rows_probe], [rows_update, zeros]])
        left, right = core.T @ gram, core @ gram
        body = np.sum(left * right.T)  # the trace of core' gram core gram
        norms[m, l] = body + 2 * c * np.trace(right) + c**2 * len(embedding)
    return np.sqrt(norms)


def _lazy(case: Case, params: Any, probe: Array, update: Array) -> ldjax.LinearMap:
    left, right = (case.logits_fn(tokens) for tokens in (probe, update))
    return ldjax.jacobian(left, params) @ ldjax.jacobian(right, params).T


class _Trunk(NamedTuple):
    """Hidden states `[pos, width]` of both sides as functions of parameters."""

    probe_fn: Callable[[Any], Array]
    update_fn: Callable[[Any], Array]
    params: Any
    ids: np.ndarray  # token of each row of the embedding


def _trunk(
    case: Case, params: Any, positions: tuple[int, ...], *, rows_only: bool
) -> _Trunk:
    assert isinstance(case.module, Transformer)
    known = [np.asarray(tokens) for tokens in case.inputs[:2]]
    if any(tokens.shape[0] != 1 for tokens in known):
        raise ValueError(f"Case {case.name} must have one example on each side.")
    ids = np.arange(case.module.config.vocab_size)
    if rows_only:
        ids = np.unique(np.concatenate(known, axis=None))
        rows = params["token_embedding"]["embedding"][ids]
        params = {**params, "token_embedding": {"embedding": rows}}
    config = dataclasses.replace(case.module.config, vocab_size=len(ids))
    module = Transformer(config)

    def hidden_fn(tokens: np.ndarray) -> Callable[[Any], Array]:
        row_of_token = jnp.asarray(np.searchsorted(ids, tokens))

        def hidden(params: Any) -> Array:
            states = module.apply({"params": params}, row_of_token, method="hidden")
            assert isinstance(states, jax.Array)
            return states[0, list(positions)]

        return hidden

    return _Trunk(hidden_fn(known[0]), hidden_fn(known[1]), params, ids)
