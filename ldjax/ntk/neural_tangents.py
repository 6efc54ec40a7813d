"""The loader of neural-tangents, whose last release predates today's JAX.

neural-tangents 0.6.5 fails to import from JAX 0.6 on, because names it imports have
moved, and it imports TensorFlow for a part we do not use. The two contractions that
ldjax calls are correct once those names exist *while it is being imported*. This
module lends them for that long and takes them back. It is the only place of ldjax
that touches names outside JAX's public API; only the dense methods depend on it.
"""

import contextlib
import importlib.metadata
import sys
import types
import typing
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad

__all__ = ["load_neural_tangents"]

_PACKAGE = "neural_tangents"


def load_neural_tangents() -> ModuleType:
    """Import neural-tangents under any JAX that its contractions run on.

    A process that has already imported it is left alone. TensorFlow is never
    imported.

    Raises:
      ImportError: If it is not installed or this JAX defeats it; names the versions
        and what remains.

    Examples:
      >>> load_neural_tangents().__version__
      '0.6.5'
    """
    if loaded := sys.modules.get(_PACKAGE):
        return loaded
    before = set(sys.modules)
    try:
        with _names_lent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, about Python and JAX
            import neural_tangents
    except Exception as error:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == _PACKAGE:
                del sys.modules[name]  # nothing half-imported stays behind
        raise ImportError(_message(error)) from error
    return neural_tangents


def _message(error: Exception) -> str:
    try:
        version = importlib.metadata.version("neural-tangents")
    except importlib.metadata.PackageNotFoundError:
        problem = "neural-tangents is not installed (`pip install neural-tangents`)"
    else:
        problem = (
            f"neural-tangents {version} cannot be imported on JAX {jax.__version__} "
            f"({type(error).__name__}: {error})"
        )
    return (
        f'{problem}, so the dense methods "jacobian" and "ntk_vp" are not available. '
        'What remains: the lazy kernel (`method="lazy"`), with the same numbers from '
        "`.dense()`, `.block()`, `.trace()` and `.frobenius_norm()`; and for Linen "
        'models "structured" and "factored".'
    )


@contextlib.contextmanager
def _names_lent() -> Iterator[None]:
    """Names that neural-tangents imports, where this JAX no longer has them."""
    # Some versions still have the module, without these two functions.
    util = sys.modules.get("jax.util") or types.ModuleType("jax.util")
    extend = jax.extend.core
    lent: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (
            jax.core.__dict__,
            {
                "AbstractValue": getattr(extend, "AbstractValue", typing.Any),
                "Jaxpr": extend.Jaxpr,
                "JaxprEqn": extend.JaxprEqn,
                "Literal": extend.Literal,
                "Primitive": extend.Primitive,
                "ShapedArray": getattr(extend, "ShapedArray", typing.Any),
                "Value": typing.Any,
                "Var": extend.Var,
            },
        ),
        (jax.interpreters.ad.__dict__, {"zeros_like_p": object()}),
        (jax.__dict__, {"util": util}),
        (
            util.__dict__,
            {
                "safe_map": lambda f, *args: [f(*xs) for xs in zip(*args, strict=True)],
                "safe_zip": lambda *args: list(zip(*args, strict=True)),
            },
        ),
        (
            sys.modules,
            {
                "jax.util": util,
                # Imports TensorFlow; nothing we call uses it.
                f"{_PACKAGE}.experimental": types.ModuleType("experimental"),
            },
        ),
    ]
    missing = [
        (namespace, {k: v for k, v in names.items() if k not in namespace})
        for namespace, names in lent
    ]
    for namespace, names in missing:
        namespace.update(names)
    try:
        yield
    finally:
        for namespace, names in missing:
            for name in names:
                namespace.pop(name, None)
