"""Our norms against Linen's: values, tangents, cotangents, second derivatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from ldjax.models.normalization import Norm

LINEN = {True: nn.LayerNorm, False: nn.RMSNorm}


@pytest.mark.parametrize("center", [True, False])
def test_every_derivative_is_that_of_linens_norm(center):
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(a) for a in 3 + rng.normal(size=(2, 4, 5, 6)))
    ours = Norm(center=center, epsilon=0.1, param_dtype="float64")
    theirs = LINEN[center](
        epsilon=0.1, param_dtype=jnp.float64, use_fast_variance=False
    )
    fresh = ours.init(jax.random.key(0), x)["params"]
    params = {name: jnp.asarray(rng.normal(size=6)) for name in fresh}
    assert set(fresh) == set(theirs.init(jax.random.key(0), x)["params"])

    @jax.jit
    def derivatives(cotangent):
        def of(norm):
            call = lambda p, x: norm.apply({"params": p}, x)
            value, tangent = jax.jvp(lambda x: call(params, x), (x,), (dx,))
            pulled = jax.vjp(call, params, x)[1](cotangent)
            cubed = lambda x: (call(params, x) ** 3).sum()
            second = jax.jvp(jax.grad(cubed), (x,), (dx,))[1]
            return value, tangent, pulled, second

        return of(ours), of(theirs)

    actual, expected = derivatives(dx[::-1])
    assert_close(actual, expected, rtol=1e-12)
