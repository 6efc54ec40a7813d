r"""Rotary positions: queries and keys turned by angles that grow with the position."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["RotaryScaling", "rotate", "wave_numbers"]

ScalingKind = Literal["linear", "llama3", "yarn"]


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    r"""How the wave numbers of a model were changed to reach longer contexts.

    .. math:: \omega_j \mapsto s_j \omega_j + (1 - s_j) \omega_j / f

    with the share :math:`s_j` zero (`linear`), or between 0 for long waves and 1 for
    short ones: linear in the number of turns within the original length (`llama3`) or
    in the index `j` (`yarn`).

    Attributes:
      kind: The name of the rule.
      factor: The factor `f` by which the context is longer.
      original_max_positions: The length trained on before, in tokens; not used by
        `linear`.
      slow: The turns within the original length up to which a wave is slowed down in
        full (`llama3`: `low_freq_factor`; `yarn`: `beta_slow`).
      fast: The turns from which a wave is left alone (`high_freq_factor`, `beta_fast`).
      amplitude: The factor of queries and keys (`yarn`: `attention_factor`).
      whole_indices: Whether `yarn` rounds the indices where its ramp begins and ends.

    Raises:
      ValueError: Where the settings make no sense.

    References:
      `Chen et al. 2023 <https://arxiv.org/abs/2306.15595>`_ (linear), `Peng et al. 2023
      <https://arxiv.org/abs/2309.00071>`_ (yarn), Llama 3.1's model card.

    Examples:
      >>> RotaryScaling(kind="linear", factor=2.0).amplitude
      1.0
    """

    kind: ScalingKind
    factor: float
    original_max_positions: int = 0
    slow: float = 1.0
    fast: float = 4.0
    amplitude: float = 1.0
    whole_indices: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScalingKind):
            raise ValueError(
                f"`kind` of a rotary scaling must be one of {get_args(ScalingKind)}, "
                f"got {self.kind!r}."
            )
        if not self.factor > 0 or not self.amplitude > 0:
            raise ValueError(
                "`factor` and `amplitude` of a rotary scaling must be positive, got "
                f"{self.factor} and {self.amplitude}."
            )
        if self.kind == "linear":
            return
        if self.original_max_positions < 1 or not 0 < self.slow < self.fast:
            raise ValueError(
                f"A {self.kind} scaling needs `original_max_positions` of at least 1 "
                f"and 0 < `slow` < `fast`, got {self.original_max_positions}, "
                f"{self.slow} and {self.fast}."
            )

    @classmethod
    def of(cls, settings: "RotaryScaling | Mapping[str, Any]") -> "RotaryScaling":
        """Itself, or what `dataclasses.asdict` made of it.

        Examples:
          >>> RotaryScaling.of({"kind": "linear", "factor": 4.0}).factor
          4.0
        """
        return settings if isinstance(settings, RotaryScaling) else cls(**settings)

    def kept(self, waves: np.ndarray, theta: float) -> np.ndarray:
        """`s`, the share of each wave number that stays as it was.

        Args:
          waves: Wave numbers, radians per token.
          theta: The base of the wave numbers.
        """
        if self.kind == "linear":
            return np.zeros_like(waves)
        length = self.original_max_positions
        if self.kind == "llama3":
            turns = length * waves / (2 * math.pi)
            return np.clip((turns - self.slow) / (self.fast - self.slow), 0, 1)
        half = len(waves)

        def index_of(turns: float) -> float:
            return half * math.log(length / (2 * math.pi * turns)) / math.log(theta)

        first, last = index_of(self.fast), index_of(self.slow)
        if self.whole_indices:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        ramp = (np.arange(half) - first) / ((last - first) or 0.001)
        return 1 - np.clip(ramp, 0, 1)


def wave_numbers(
    num_rotated: int, theta: float, scaling: RotaryScaling | None = None
) -> np.ndarray:
    r"""Radians per token of each rotated pair of features.

    .. math:: \omega_j = \theta^{-2j/r}, \quad j < r/2

    Args:
      num_rotated: The even number `r` of features that are rotated.
      theta: The base of the wavelengths.
      scaling: A change of the wavelengths for longer contexts, if any.

    Returns:
      `[r / 2]`, float64.

    Examples:
      >>> wave_numbers(4, 10000.0)
      array([1.  , 0.01])
      >>> wave_numbers(4, 10000.0, RotaryScaling(kind="linear", factor=2.0))
      array([0.5  , 0.005])
    """
    half = num_rotated // 2
    waves = theta ** (-np.arange(half) / half)
    if scaling is None:
        return waves
    kept = scaling.kept(waves, theta)
    return kept * waves + (1 - kept) * waves / scaling.factor


def rotate(
    vectors: Float[Array, "batch pos head head_dim"],
    positions: Int[Array, "batch pos"],
    *,
    num_rotated: int,
    theta: float,
    scaling: RotaryScaling | None = None,
) -> Float[Array, "batch pos head head_dim"]:
    r"""Rotary position embedding of queries or keys.

    .. math:: (x_j, x_{j+r/2}) \mapsto R(p\,\omega_j) (x_j, x_{j+r/2}), \quad j < r/2

    with `R` the rotation of the plane, `r` the number of rotated features and
    :math:`\omega` their `wave_numbers`. Paired are features `j` and `j + r/2`
    (GPT-NeoX, Llama, Qwen), not neighbours (GPT-J). The angles are computed in float32
    or better.

    Args:
      vectors: Queries or keys.
      positions: Position `p` of each token, in tokens.
      num_rotated: The even number `r` of rotated features; the others are left alone.
      theta: The base of the wavelengths.
      scaling: A change of the wave numbers for longer contexts, if any.

    Returns:
      Rotated vectors, in the dtype of `vectors`.

    References:
      Su et al., `RoFormer <https://arxiv.org/abs/2104.09864>`_, 2021, equation 15.

    Examples:
      >>> query = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
      >>> rotate(query, jnp.array([[1]]), num_rotated=2, theta=10000.0).ravel()
      Array([0.540..., 0.841...], dtype=...)
    """
    dtype = jnp.promote_types(vectors.dtype, jnp.float32)
    half = num_rotated // 2
    waves = jnp.asarray(wave_numbers(num_rotated, theta, scaling), dtype)
    angles = positions.astype(dtype)[:, :, None, None] * waves[None, None, None]
    amplitude = 1.0 if scaling is None else scaling.amplitude
    cos, sin = amplitude * jnp.cos(angles), amplitude * jnp.sin(angles)
    first, second, rest = jnp.split(vectors, [half, num_rotated], axis=-1)
    return jnp.concatenate(
        [
            (first * cos - second * sin).astype(vectors.dtype),
            (second * cos + first * sin).astype(vectors.dtype),
            rest,
        ],
        axis=-1,
    )
