"""Our norms against Linen's: values, tangents, cotangents, second derivatives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close

from ldjax.models.decoder.norm import Norm, standardize

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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("shape", "count"), [((1408, 32), 3), ((2048, 64), 2)])
def test_signals_that_are_pushed_together_do_not_mix(shape, count, center, dtype):
    # Large enough for the kernel that jaxlib 0.10.2 compiles wrongly.
    x, *signals = (
        jax.random.normal(key, shape, dtype)
        for key in jax.random.split(jax.random.key(0), 1 + count)
    )
    fn = lambda x: standardize(x, 1e-5, center)
    push = lambda x, dx: jax.jvp(fn, (x,), (dx,))[1]
    pull = lambda x, ct: jax.vjp(fn, x)[1](ct)[0]
    signals = jnp.stack(signals)
    for along in (push, pull):
        alone = jnp.stack([jax.jit(along)(x, signal) for signal in signals])
        every = jax.vmap(along, in_axes=(None, 0))
        # The compiler simplifies more where it knows `x`.
        for together in (
            jax.jit(every)(x, signals),
            jax.jit(functools.partial(every, x))(signals),
        ):
            assert_close(together, alone, rtol=1e-5 if dtype == "float32" else 1e-12)
