"""Rotary wave numbers against the papers' formulas, one wave at a time."""

import cmath
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close
from zoo.decoders import CONFIGS, make_decoder, random_tokens

from ldjax.models import LowRank, RotaryScaling, Transformer, TransformerConfig
from ldjax.models.decoder.rotary import rotate, wave_numbers

ACCEPTED = 1e-13

SIZES = pytest.mark.parametrize(
    ("num_rotated", "theta"), [(8, 1e4), (32, 5e5), (64, 1e4), (128, 1e6)]
)


def plain(num_rotated, theta):
    """Wave numbers of the original paper, `theta^(-2 (i - 1) / d)`."""
    return [1 / theta ** (2 * j / num_rotated) for j in range(num_rotated // 2)]


def linear(num_rotated, theta, *, factor):
    """Position interpolation: positions are divided by the factor."""
    return [wave / factor for wave in plain(num_rotated, theta)]


def llama3(num_rotated, theta, *, factor, low_freq, high_freq, length):
    """Llama 3.1's `apply_scaling`, by wavelength."""
    waves = []
    for wave in plain(num_rotated, theta):
        wavelength = 2 * math.pi / wave
        if wavelength < length / high_freq:
            waves.append(wave)
        elif wavelength > length / low_freq:
            waves.append(wave / factor)
        else:
            smooth = (length / wavelength - low_freq) / (high_freq - low_freq)
            waves.append((1 - smooth) * wave / factor + smooth * wave)
    return waves


def yarn(num_rotated, theta, *, factor, beta_slow, beta_fast, length, truncate=True):
    """YaRN's NTK-by-parts with the ramp over indices, as its authors published it."""

    def correction_dim(num_rotations):
        turns = length / (num_rotations * 2 * math.pi)
        return num_rotated * math.log(turns) / (2 * math.log(theta))

    low, high = correction_dim(beta_fast), correction_dim(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, num_rotated - 1)
    if low == high:
        high += 0.001
    waves = []
    for j, wave in enumerate(plain(num_rotated, theta)):
        extrapolated = 1 - min(max((j - low) / (high - low), 0), 1)
        waves.append(wave / factor * (1 - extrapolated) + wave * extrapolated)
    return waves


def _llama3(factor, *, low_freq, high_freq, length):
    return RotaryScaling(
        kind="llama3",
        factor=factor,
        slow=low_freq,
        fast=high_freq,
        original_max_positions=length,
    )


def _yarn(factor, *, beta_slow, beta_fast, length, truncate=True):
    return RotaryScaling(
        kind="yarn",
        factor=factor,
        slow=beta_slow,
        fast=beta_fast,
        original_max_positions=length,
        whole_indices=truncate,
    )


def assert_same_waves(found, expected):
    """Each to its own size: the longest are thousands of times the shortest."""
    assert_close(np.log(found), np.log(np.array(expected)), rtol=ACCEPTED, scale=10)


@SIZES
def test_unscaled_waves_are_a_geometric_series(num_rotated, theta):
    assert_same_waves(wave_numbers(num_rotated, theta), plain(num_rotated, theta))


@SIZES
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_linear_waves_are_those_of_positions_divided_by_the_factor(
    num_rotated, theta, factor
):
    waves = wave_numbers(
        num_rotated, theta, RotaryScaling(kind="linear", factor=factor)
    )
    assert_same_waves(waves, linear(num_rotated, theta, factor=factor))


@SIZES
@pytest.mark.parametrize(
    ("factor", "settings"),
    [
        (8.0, {"low_freq": 1.0, "high_freq": 4.0, "length": 8192}),
        (32.0, {"low_freq": 1.0, "high_freq": 4.0, "length": 64}),
        (4.0, {"low_freq": 0.5, "high_freq": 40.0, "length": 300}),
    ],
)
def test_llama3_waves_are_those_of_its_published_code(
    num_rotated, theta, factor, settings
):
    waves = wave_numbers(num_rotated, theta, _llama3(factor, **settings))
    assert_same_waves(waves, llama3(num_rotated, theta, factor=factor, **settings))


@SIZES
@pytest.mark.parametrize(
    ("factor", "settings"),
    [
        (4.0, {"beta_slow": 1.0, "beta_fast": 32.0, "length": 32768}),
        (16.0, {"beta_slow": 1.0, "beta_fast": 32.0, "length": 4096}),
        (16.0, {"beta_slow": 1.0, "beta_fast": 32.0, "length": 64}),
        (2.0, {"beta_slow": 1.0, "beta_fast": 32.0, "length": 999, "truncate": False}),
        (8.0, {"beta_slow": 2.0, "beta_fast": 3.0, "length": 512, "truncate": False}),
    ],
)
def test_yarn_waves_are_those_of_its_published_code(
    num_rotated, theta, factor, settings
):
    waves = wave_numbers(num_rotated, theta, _yarn(factor, **settings))
    assert_same_waves(waves, yarn(num_rotated, theta, factor=factor, **settings))


def test_a_yarn_ramp_between_equal_indices_is_a_step():
    # Both ends of the ramp fall on index 0: all waves but the first are slowed.
    settings = {"beta_slow": 10.0, "beta_fast": 20.0, "length": 32}
    waves = wave_numbers(8, 1e4, _yarn(4.0, **settings))
    assert_same_waves(waves, yarn(8, 1e4, factor=4.0, **settings))
    slowed = np.array([1, 0.25, 0.25, 0.25]) * plain(8, 1e4)
    assert_close(waves, slowed, rtol=ACCEPTED)


# What the rules are for.

SCALINGS = {
    "linear": RotaryScaling(kind="linear", factor=8.0),
    "llama3": _llama3(8.0, low_freq=1.0, high_freq=4.0, length=256),
    "yarn": _yarn(8.0, beta_slow=1.0, beta_fast=32.0, length=256),
}


def test_llama3_keeps_short_waves_and_slows_long_ones_by_the_factor():
    waves = wave_numbers(64, 1e4)
    turns = 256 * waves / (2 * np.pi)
    ratios = wave_numbers(64, 1e4, SCALINGS["llama3"]) / waves
    short, long = turns >= 4, turns <= 1
    assert short.any()
    assert long.any()
    assert (~short & ~long).any()
    assert (ratios[short] == 1).all()
    assert (ratios[long] == 1 / 8).all()
    between = ratios[~short & ~long]
    assert ((between > 1 / 8) & (between < 1)).all()
    assert (np.diff(between) < 0).all()


def test_yarn_keeps_the_first_waves_and_slows_the_last_by_the_factor():
    ratios = wave_numbers(64, 1e4, SCALINGS["yarn"]) / wave_numbers(64, 1e4)
    assert ratios[0] == 1
    assert_close(ratios[-1], np.array(1 / 8), rtol=ACCEPTED)
    assert (np.diff(ratios) <= 0).all()
    assert ((ratios > 1 / 8) & (ratios < 1)).any()


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_factor_of_one_changes_nothing(kind):
    scaling = dataclasses.replace(SCALINGS[kind], factor=1.0)
    assert_same_waves(wave_numbers(64, 1e4, scaling), plain(64, 1e4))


@pytest.mark.parametrize("kind", [None, *SCALINGS])
def test_a_rotation_multiplies_complex_numbers(kind):
    scaling = SCALINGS.get(kind)
    if scaling is not None:
        scaling = dataclasses.replace(scaling, amplitude=1.5)
    amplitude, waves = 1.5 if kind else 1.0, wave_numbers(8, 1e4, scaling)
    vectors = np.random.default_rng(0).normal(size=(1, 2, 3, 10))
    positions = np.array([[4, 1000]])
    expected = vectors.copy()
    for pos, head, j in np.ndindex(2, 3, 4):
        pair = complex(vectors[0, pos, head, j], vectors[0, pos, head, j + 4])
        turned = amplitude * pair * cmath.exp(1j * positions[0, pos] * waves[j])
        expected[0, pos, head, [j, j + 4]] = turned.real, turned.imag
    found = rotate(
        jnp.asarray(vectors),
        jnp.asarray(positions),
        num_rotated=8,
        theta=1e4,
        scaling=scaling,
    )
    assert_close(found, expected, rtol=1e-12)


def logits_at(params, positions, scaling=None):
    """Of one row, read by a Llama whose parameters are given."""
    config = dataclasses.replace(
        CONFIGS["llama"], num_layers=1, param_dtype="float64", rotary_scaling=scaling
    )
    tokens, positions = jnp.asarray([random_tokens(5)]), jnp.asarray([positions])
    apply = jax.jit(lambda p: Transformer(config).apply(p, tokens, None, positions))
    return apply({"params": params})


def test_a_decoder_reads_the_scaling_from_its_config():
    _, params = make_decoder("llama", num_layers=1)
    near, far = [0, 1, 2, 3, 4], [0, 3, 6, 9, 12]
    linear = RotaryScaling(kind="linear", factor=3.0)
    expected = logits_at(params, near)
    assert_close(logits_at(params, far, linear), expected, rtol=1e-12)
    assert abs(logits_at(params, near, linear) - expected).max() > 1e-4


def test_an_amplitude_multiplies_queries_and_keys():
    _, params = make_decoder("llama", num_layers=1)
    louder = RotaryScaling(kind="linear", factor=1.0, amplitude=1.5)
    found = logits_at(params, [0, 1, 2, 3, 4], louder)
    query = params["blocks_0"]["attention"]["query"]
    query["kernel"] = 1.5**2 * query["kernel"]
    assert_close(found, logits_at(params, [0, 1, 2, 3, 4]), rtol=1e-12)


# Records.


def with_json(config):
    return TransformerConfig.of(json.loads(json.dumps(dataclasses.asdict(config))))


@pytest.mark.parametrize("style", CONFIGS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("layers", [None, (1,)], ids=str)
def test_a_config_survives_json(style, scaling, layers):
    config = CONFIGS[style]
    adapters = LowRank(rank=3, alpha=5.0, targets=("qkv", "up"), layers=layers)
    changed = dataclasses.replace(config, adapters=adapters)
    if config.positions == "rotary":
        changed = dataclasses.replace(changed, rotary_scaling=SCALINGS[scaling])
    for original in (config, changed):
        assert with_json(original) == original
        assert hash(with_json(original)) == hash(original)
    assert with_json(changed) != config


# What is refused.


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "linear", "factor": 0.0}, "`factor`.*positive, got 0.0"),
        ({"kind": "linear", "factor": -2.0}, "`factor`.*positive, got -2.0"),
        ({"kind": "linear", "factor": float("nan")}, "`factor`.*positive, got nan"),
        ({"kind": "linear", "factor": 2.0, "amplitude": 0.0}, "`amplitude`"),
        ({"kind": "llama3", "factor": 2.0}, "llama3.*`original_max_positions`.*got 0"),
        ({"kind": "yarn", "factor": 2.0}, "yarn.*`original_max_positions`.*got 0"),
        (
            {
                "kind": "llama3",
                "factor": 2.0,
                "original_max_positions": 8,
                "slow": 4.0,
                "fast": 4.0,
            },
            "`slow` < `fast`, got 8, 4.0 and 4.0",
        ),
        (
            {"kind": "yarn", "factor": 2.0, "original_max_positions": 8, "slow": 0.0},
            "0 < `slow`",
        ),
    ],
)
def test_scalings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        RotaryScaling(**settings)


def test_an_unknown_rule_is_refused_by_name(monkeypatch):
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`kind`.*linear.*yarn.*got 'ntk'"):
        RotaryScaling.of({"kind": "ntk", "factor": 2.0})


def test_learned_positions_have_no_scaling():
    with pytest.raises(ValueError, match="`rotary_scaling` needs rotary `positions`"):
        dataclasses.replace(CONFIGS["gpt2"], rotary_scaling=SCALINGS["linear"])
