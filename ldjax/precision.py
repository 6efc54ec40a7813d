"""Full precision of matrix products, for numbers that are compared with each other.

On GPU and TPU JAX multiplies float32 matrices with fewer digits than they have (TF32,
or bfloat16). The difference of two log-probs would be mostly that; it would look like
an error in a kernel, or in an identity between what is predicted, observed and kept.
So whatever is watched is computed with all digits, here and nowhere else. The gradient
of a training step is not: it is what its user trains with.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

__all__ = ["exact_products", "watched"]

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def exact_products() -> Any:
    """A context, or a decorator, in which matrix products have all digits.

    Examples:
      >>> with exact_products():
      ...     print(jax.config.jax_default_matmul_precision)
      highest
    """
    return jax.default_matmul_precision("highest")


def watched(fn: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """A function whose numbers are compared with others, its products with all digits.

    Its derivatives have them too, wherever they are taken.

    Args:
      fn: For example an `ApplyFn` or a `LogitsFn`.

    Examples:
      >>> import jax.numpy as jnp
      >>> "HIGHEST" in str(jax.make_jaxpr(watched(jnp.dot))(jnp.ones(2), jnp.ones(2)))
      True
    """

    def exact(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with exact_products():
            return fn(*args, **kwargs)

    return exact
