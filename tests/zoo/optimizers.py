"""Optimizers and what their updates consist of: optax's, and some made by hand."""

import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib

__all__ = ["TABLE", "anchored", "chain_sgd", "marked", "rprop", "stateless"]

WITHOUT_BIAS = {"kernel": True, "bias": False}
DECAY = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)


def marked(names, *, fast, slow):
    """Names as parameters of a test: those of neither list are exhaustive."""

    def mark(name):
        mark = pytest.mark.slow if name in slow else pytest.mark.exhaustive
        return name if name in fast else pytest.param(name, marks=mark)

    return [mark(name) for name in names]


def _injected(learning_rate):
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(learning_rate))


def rprop(learning_rate, up=1.2, down=0.5):
    """As it was published. Optax's hands out each step one step late."""

    def init(params):
        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.tree.map(lambda p: jnp.full_like(p, learning_rate), params), zero

    def update(updates, state, params=None):
        del params
        turned = jax.tree.map(jnp.multiply, updates, state[1])
        size = jax.tree.map(
            lambda s, t: jnp.clip(
                s * jnp.where(t > 0, up, jnp.where(t < 0, down, 1.0)), 1e-6, 50.0
            ),
            *(state[0], turned),
        )
        kept = jax.tree.map(lambda g, t: jnp.where(t < 0, 0, g), updates, turned)
        step = jax.tree.map(lambda g, s: -s * jnp.sign(g), kept, size)
        return step, (size, kept)

    return optax.GradientTransformation(init, update)


def anchored(strength):
    """A pull to where the training started (L2-SP)."""

    def update(updates, state, params=None):
        pull = lambda g, p, anchor: g + strength * (p - anchor)
        return jax.tree.map(pull, updates, params, state), state

    return optax.GradientTransformation(lambda params: params, update)


def _rates_in_the_state(rate):
    """A rate for each parameter, which grows where the momentum agrees."""

    def init(params):
        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.tree.map(lambda p: jnp.full_like(p, rate), params), zero

    def update(updates, state, params=None):
        del params
        rates, trace = state
        rates = jax.tree.map(
            lambda r, g, m: r * jnp.where(g * m > 0, 1.1, 0.9), rates, updates, trace
        )
        trace = jax.tree.map(lambda r, g, m: 0.9 * m + r * g, rates, updates, trace)
        return jax.tree.map(jnp.negative, trace), (rates, trace)

    return optax.GradientTransformation(init, update)


def stateless(fn):
    return optax.stateless(lambda updates, _: jax.tree.map(fn, updates))


def chain_sgd(*optimizers):
    return optax.chain(*optimizers, optax.sgd(0.1))


def _restarted(period):
    """Momentum that is forgotten now and then, used at every step."""

    def init(params):
        return jnp.zeros((), int), jax.tree.map(jnp.zeros_like, params)

    def update(updates, state, params=None):
        del params
        count, trace = state
        keep = count % period != 0
        trace = jax.tree.map(lambda g, m: g + 0.9 * keep * m, updates, trace)
        return jax.tree.map(lambda m: -0.1 * m, trace), (count + 1, trace)

    return optax.GradientTransformation(init, update)


def _sam(optimizer):
    """Uphill, then from there and back: each update is `c a + (1 - c) b`."""
    uphill = optax.chain(contrib.normalize(), optax.sgd(0.01))
    sam = contrib.sam(optimizer, uphill)
    return optax.GradientTransformation(
        sam.init, lambda updates, state, params=None: sam.update(updates, state, params)
    )


def _later(step, **_):
    return jnp.asarray(step) > 0


NOISY = optax.add_noise(0.1, 0.5, jax.random.key(0))
# name: (optimizer, the parts it has beside the gradient's own)
TABLE = {
    "sgd": (optax.sgd(0.1), []),
    "scheduled sgd": (optax.sgd(DECAY), []),
    "momentum": (optax.sgd(0.1, momentum=0.9), ["history"]),
    "nesterov": (optax.sgd(DECAY, momentum=0.9, nesterov=True), ["history"]),
    "momentum, decay": (
        optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(DECAY, momentum=0.9)),
        ["history", "weight_decay"],
    ),
    "momentum in float32": (
        optax.sgd(0.1, momentum=0.5, accumulator_dtype=jnp.float32),
        ["history"],
    ),
    "adam": (optax.adam(0.1), ["history"]),
    "amsgrad": (optax.amsgrad(0.1), ["history"]),
    "nadam": (optax.nadam(0.1), ["history"]),
    "nadamw": (optax.nadamw(0.1), ["history", "weight_decay"]),
    "adamw": (optax.adamw(0.1), ["history", "weight_decay"]),
    "adamw, masked": (optax.adamw(0.1, mask=WITHOUT_BIAS), ["history", "weight_decay"]),
    "clip, adamw": (
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(DECAY)),
        ["history", "weight_decay"],
    ),
    "clip by block": (
        optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.1)),
        [],
    ),
    "adaptive clip": (optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)), []),
    "normalised": (optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)), []),
    "rmsprop": (optax.rmsprop(0.1), []),
    "rmsprop, momentum": (optax.rmsprop(0.1, momentum=0.9), ["history"]),
    "rmsprop, centered": (optax.rmsprop(0.1, centered=True), []),
    "adagrad": (optax.adagrad(0.1), []),
    "adadelta": (optax.adadelta(0.1), []),
    "yogi": (optax.yogi(0.1), ["history"]),
    "radam": (optax.radam(0.1), ["history"]),
    "adabelief": (optax.adabelief(0.1), ["history"]),
    "novograd": (optax.novograd(0.1), ["history"]),
    "adamax": (optax.adamax(0.1), ["history"]),
    "lamb": (optax.lamb(0.1, weight_decay=0.01), ["history", "weight_decay"]),
    "lars": (optax.lars(0.1, weight_decay=0.01), ["history", "weight_decay"]),
    "fromage": (optax.fromage(0.1), ["weight_decay"]),
    "adafactor": (
        optax.adafactor(0.1, min_dim_size_to_factor=2, clipping_threshold=1.0),
        [],
    ),
    "ema": (optax.chain(optax.ema(0.9), optax.scale(-0.1)), ["history"]),
    "nonnegative": (
        optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
        ["weight_decay"],  # where a parameter is set to zero it is its own reason
    ),
    "centralised": (optax.chain(optax.centralize(), optax.sgd(0.1)), []),
    "injected": (
        optax.inject_hyperparams(_injected)(learning_rate=DECAY),
        ["history", "weight_decay"],
    ),
    "partition": (
        optax.partition(
            {"a": optax.adam(0.1), "b": optax.set_to_zero()},
            {"kernel": "a", "bias": "b"},
        ),
        ["history"],
    ),
    "masked": (optax.masked(optax.adam(0.1), WITHOUT_BIAS), ["history"]),
    "accumulated": (
        optax.MultiSteps(optax.adamw(0.1), 2),
        ["accumulated", "history", "weight_decay"],
    ),
    "apply if finite": (optax.apply_if_finite(optax.adam(0.1), 3), ["history"]),
    "plateau": (
        optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        ["history"],
    ),
    # What was refused, or had the wrong names.
    "lion": (optax.lion(0.1), ["history", "weight_decay"]),
    "sign_sgd": (optax.sign_sgd(0.1), []),
    "signum": (optax.signum(0.1), ["history"]),
    "clip by value": (chain_sgd(optax.clip(0.3)), []),
    "clip by value, adam": (
        optax.chain(optax.clip(0.3), optax.adam(0.1)),
        ["history"],
    ),
    "clip by value, at times": (
        chain_sgd(optax.conditionally_transform(optax.clip(0.3), _later)),
        [],
    ),
    "tanh": (chain_sgd(stateless(jnp.tanh)), []),
    "cube": (chain_sgd(stateless(lambda g: g**3)), []),
    "rounded": (chain_sgd(stateless(lambda g: jax.lax.reduce_precision(g, 8, 3))), []),
    "rprop": (rprop(0.1), []),
    "rprop, optax": (optax.rprop(0.1), ["history"]),
    "rates in the state": (_rates_in_the_state(0.1), ["history"]),
    "adopt": (contrib.adopt(0.1), ["history"]),
    "adopt, nesterov": (contrib.adopt(0.1, nesterov=True), ["history"]),
    "muon": (contrib.muon(0.1), ["history"]),
    "muon, aol": (contrib.muon(0.1, preconditioning="aol"), ["history"]),
    "muon, schatten": (contrib.muon(0.1, preconditioning="schatten"), ["history"]),
    "muon, several coefficients": (
        contrib.muon(0.1, ns_coeffs=((3.0, -4.0, 2.0), (3.4, -4.7, 2.0)), ns_steps=2),
        ["history"],
    ),
    "galore": (contrib.galore(0.1, rank=1), ["history"]),
    "accumulated sgd": (optax.MultiSteps(optax.sgd(0.1), 2), ["accumulated"]),
    "accumulated sums": (
        optax.MultiSteps(optax.adam(0.1), 2, use_grad_mean=False),
        ["accumulated", "history"],
    ),
    "accumulated, skipping": (
        optax.MultiSteps(
            optax.adam(0.1), 2, should_skip_update_fn=optax.skip_not_finite
        ),
        ["accumulated", "history"],
    ),
    "every second": (chain_sgd(optax.apply_every(2)), ["accumulated"]),
    "every second, momentum": (
        optax.chain(optax.apply_every(2), optax.sgd(0.1, momentum=0.9)),
        ["accumulated", "history"],
    ),
    "adam, every second": (  # the buffer holds moments, which are older
        optax.chain(optax.adam(0.1), optax.apply_every(2)),
        ["history"],
    ),
    "momentum that starts anew": (_restarted(2), ["history"]),
    "sam, adam": (_sam(optax.adam(0.1)), ["history", "weight_decay"]),
    "schedule-free sgd": (contrib.schedule_free_sgd(0.05), ["history", "weight_decay"]),
    "schedule-free adamw": (
        contrib.schedule_free_adamw(0.05, weight_decay=0.1, warmup_steps=2),
        ["history", "weight_decay"],
    ),
    "madgrad": (contrib.madgrad(0.05), ["history", "weight_decay"]),
    "cocob": (contrib.cocob(), ["history", "weight_decay"]),
    "mechanize": (
        contrib.mechanize(optax.sgd(0.1), s_init=0.1),
        ["history", "weight_decay"],
    ),
    "anchored": (chain_sgd(anchored(0.1)), ["history", "weight_decay"]),
    "anchored, adamw": (
        optax.chain(anchored(0.1), optax.adamw(0.1)),
        ["history", "weight_decay"],
    ),
    "noise": (chain_sgd(NOISY), ["noise"]),
    "noise, adam": (optax.chain(NOISY, optax.adam(0.1)), ["history", "noise"]),
    "noisy sgd": (optax.noisy_sgd(0.1, key=0), ["noise"]),
    "flattened": (optax.flatten(optax.adamw(0.1)), ["history", "weight_decay"]),
    "flattened, schedule-free": (
        optax.flatten(contrib.schedule_free_sgd(0.05)),
        ["history", "weight_decay"],
    ),
    # The rest of optax.
    "optimistic": (optax.optimistic_gradient_descent(0.1), ["history"]),
    "adan": (optax.adan(0.1, weight_decay=0.1), ["history", "weight_decay"]),
    "adamaxw": (optax.adamaxw(0.1), ["history", "weight_decay"]),
    "adafactor, momentum": (
        optax.adafactor(0.1, momentum=0.9, min_dim_size_to_factor=2),
        ["history"],
    ),
    "sm3": (optax.sm3(0.1), ["history"]),
    "polyak": (optax.polyak_sgd(0.1), []),
    "rmsprop, nesterov": (
        optax.rmsprop(0.1, centered=True, momentum=0.9, nesterov=True),
        ["history"],
    ),
    "trust ratio": (chain_sgd(optax.scale_by_trust_ratio()), []),
    "zero nans": (optax.chain(optax.zero_nans(), optax.adam(0.1)), ["history"]),
    "adam in bfloat16": (optax.adam(0.1, mu_dtype=jnp.bfloat16), ["history"]),
    "no rate": (
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.9),
        ["history"],
    ),
    "at times": (
        optax.conditionally_mask(optax.adam(0.1), _later),
        ["history"],
    ),
    "ademamix": (contrib.ademamix(0.1), ["history"]),
    "simplified ademamix": (contrib.simplified_ademamix(0.1), ["history"]),
    "acprop": (contrib.acprop(0.1), []),
    "dadapt": (contrib.dadapt_adamw(0.1), ["history"]),
    "prodigy": (contrib.prodigy(0.1), ["history"]),
    "dog": (contrib.dog(0.1), []),
    "dowg": (contrib.dowg(0.1), []),
    "momo": (contrib.momo(0.1), ["history"]),
    "momo adam": (contrib.momo_adam(0.1), ["history"]),
    "normalize": (chain_sgd(contrib.normalize()), []),
}
