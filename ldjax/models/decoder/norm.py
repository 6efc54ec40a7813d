r"""Layer and RMS norms with their tangent in closed form.

Linen's norms differentiate through mean, variance and root one by one. In closed form
tangent and cotangent are the same few passes over the activations, which an exact
kernel takes for every basis vector. On the CPU that makes a factored kernel an eighth
faster and a training step a seventh, but a plain `jacrev` of all logits slower.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldjax.models.decoder.config import TransformerConfig

__all__ = ["Norm", "norm_of", "standardize"]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def standardize(
    x: Float[Array, "*batch width"], epsilon: float, center: bool
) -> Float[Array, "*batch width"]:
    r"""Features of mean square one at each position.

    .. math:: \hat x = r\,(x - \mu),
              \qquad r = \bigl(\overline{(x - \mu)^2} + \epsilon\bigr)^{-1/2}

    with :math:`\mu` the mean over the features if `center`, else 0. The tangent is

    .. math:: d\hat x = r\,(dx - d\mu - \hat x\,\overline{\hat x\,dx}).

    Args:
      x: The activations.
      epsilon: The number added to the mean square.
      center: Whether the mean is taken off, as a layer norm does.

    Returns:
      An array like `x`.

    Examples:
      >>> standardize(jnp.array([1.0, 3.0]), 0.0, True)
      Array([-1.,  1.], dtype=...)
    """
    return _standardized(x, epsilon, center)[0]


@standardize.defjvp
def _(epsilon, center, primals, tangents):
    (x,), (dx,) = primals, tangents
    standardized, rate = _standardized(x, epsilon, center)
    along = (standardized * dx).mean(axis=-1, keepdims=True)
    # To the precision it has: nothing changes, but without this operation, here and
    # transposed, XLA's CPU compiler (jaxlib 0.10.2) makes one kernel of the mean and
    # what uses it, which is slow, and under `vmap` over `dx` *wrong* from about 1100
    # rows on: it takes another signal's mean.
    bits = jnp.finfo(along.dtype)
    along = jax.lax.reduce_precision(along, bits.nexp, bits.nmant)
    moved = dx - standardized * along
    if center:
        moved = moved - dx.mean(axis=-1, keepdims=True)
    return standardized, rate * moved


def _standardized(x: Array, epsilon: float, center: bool) -> tuple[Array, Array]:
    if center:
        x = x - x.mean(axis=-1, keepdims=True)
    # Not E[x^2] - E[x]^2, which loses digits.
    rate = jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)
    return rate * x, rate


class Norm(nn.Module):
    r"""LayerNorm or RMSNorm over the features: :math:`(o + \gamma) \hat x + \beta`.

    Means are float32 or better. Parameters are those of `nn.LayerNorm` and
    `nn.RMSNorm`: `scale` and, for a layer norm, `bias`.

    Attributes:
      center: LayerNorm if true, else RMSNorm, which has neither mean nor bias.
      epsilon: The number added to the variance (the mean square).
      offset: The number added to the scale; fresh scales and it are one together.
      dtype: The dtype of the result; None to infer it from the input and the
        parameters.
      param_dtype: The dtype of fresh parameters.

    Examples:
      >>> norm, x = Norm(), jnp.array([[1.0, 3.0]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).round(3)
      Array([[-1.,  1.]], dtype=...)
    """

    center: bool = True
    epsilon: float = 1e-5
    offset: float = 0.0
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Normalises each position."""
        shape, dtype = (x.shape[-1],), jnp.dtype(self.param_dtype)
        fresh = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", fresh, shape, dtype)
        terms = [scale]
        if self.center:
            terms.append(self.param("bias", nn.initializers.zeros, shape, dtype))
        result = self.dtype or jnp.result_type(x, *terms)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.offset:
            terms[0] = self.offset + scale.astype(wide.dtype)
        scale, *bias = (jnp.broadcast_to(term, x.shape) for term in terms)
        y = scale * standardize(wide, self.epsilon, self.center)
        for term in bias:
            y = y + term
        return y.astype(result)


def norm_of(config: TransformerConfig, *, name: str | None = None) -> Norm:
    """A norm as a decoder has them.

    Args:
      config: The architecture.
      name: The name of the module, in a compact method.
    """
    return Norm(
        center=config.norm == "layer",
        epsilon=config.norm_epsilon,
        offset=config.norm_offset,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        name=name,
    )
