r"""LoRA: low-rank adapters beside chosen matrices of a decoder.

    y = W x + (alpha / rank) B A x

`A` and `B` are Linen layers like any other, `NAME_lora_a` and `NAME_lora_b` beside the
matrix `NAME`, so that steps, parts and exact kernels hold for them without further ado.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
from jaxtyping import Array, Float

__all__ = ["LowRank", "Target", "adapted_dense", "is_adapter", "low_rank_change"]

Target = Literal["qkv", "query", "key", "value", "out", "gate", "up", "down"]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    r"""Which matrices have an adapter, and of what rank.

    Attributes:
      rank: The number of columns of `A` and rows of `B`.
      alpha: The scale: the adapter's output is multiplied by `alpha / rank`.
      targets: Some of `query`, `key`, `value`, `out`, `gate`, `up`, `down`; or `qkv`,
        one adapter for query, key and value together, which share its `A`: what PEFT
        does where a model stores the three as one matrix (GPT-2, GPT-NeoX).
      layers: The blocks that have them; None for all.

    Raises:
      ValueError: Where the settings make no sense.

    References:
      Hu et al., `LoRA <https://arxiv.org/abs/2106.09685>`_, 2021.

    Examples:
      >>> LowRank(rank=8, alpha=16.0, targets=("query", "value")).scale
      2.0
    """

    rank: int
    alpha: float
    targets: tuple[Target, ...]
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(
                "`rank` must be at least 1 and `alpha` positive, got "
                f"{self.rank} and {self.alpha}."
            )
        unknown = set(self.targets) - set(get_args(Target))
        if unknown or not self.targets:
            raise ValueError(
                f"`targets` must be some of {', '.join(get_args(Target))}; got "
                f"{', '.join(sorted(unknown)) or 'none'}."
            )
        alone = set(self.targets) & {"query", "key", "value"}
        if "qkv" in self.targets and alone:
            raise ValueError(
                f"`targets`: qkv stands for query, key and value; got it and "
                f"{', '.join(sorted(alone))}."
            )

    @classmethod
    def of(cls, settings: "LowRank | Mapping[str, Any]") -> "LowRank":
        """Itself, or what `dataclasses.asdict` (and JSON) made of it.

        Examples:
          >>> LowRank.of({"rank": 2, "alpha": 4, "targets": ["up"]}).targets
          ('up',)
        """
        if isinstance(settings, LowRank):
            return settings
        layers = settings.get("layers")
        return cls(
            rank=settings["rank"],
            alpha=float(settings["alpha"]),
            targets=tuple(settings["targets"]),
            layers=None if layers is None else tuple(layers),
        )

    @property
    def scale(self) -> float:
        """`alpha / rank`."""
        return self.alpha / self.rank

    def at(self, layer: int) -> "LowRank | None":
        """What a block has: itself, or None.

        Examples:
          >>> LowRank(rank=1, alpha=1.0, targets=("up",), layers=(0,)).at(1)
        """
        return self if self.layers is None or layer in self.layers else None


def adapted_dense(
    x: Float[Array, "*batch width"],
    features: int,
    *,
    name: Target,
    adapters: LowRank | None,
    **settings: Any,
) -> Float[Array, "*batch features"]:
    """`nn.Dense` with its adapter, if it has one; to be called in a compact method.

    Args:
      x: The input.
      features: The number of features of the output.
      name: The name of the layer.
      adapters: The adapters of the block.
      settings: Settings of the `nn.Dense`; dtypes hold for the adapter, too.

    Returns:
      The output.

    Examples:
      >>> class Layer(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      ...         return adapted_dense(x, 3, name="up", adapters=adapters)
      >>> params = Layer().init(jax.random.key(0), jax.numpy.ones((1, 5)))["params"]
      >>> sorted(params)
      ['up', 'up_lora_a', 'up_lora_b']
    """
    y = nn.Dense(features, name=name, **settings)(x)
    if adapters is None or name not in adapters.targets:
        return y
    dtypes = {key: settings[key] for key in ("dtype", "param_dtype") if key in settings}
    return y + low_rank_change(x, features, name=name, adapters=adapters, **dtypes)


def low_rank_change(
    x: Float[Array, "*batch width"],
    features: int,
    *,
    name: Target,
    adapters: LowRank,
    **dtypes: Any,
) -> Float[Array, "*batch features"]:
    r"""What an adapter adds, `(alpha / rank) B A x`; to be called in a compact method.

    Fresh ones are zero, as PEFT's: `A` uniform within :math:`1/\sqrt{d}`, `B` zero.

    Args:
      x: The input.
      features: The number of features of the output.
      name: The name of the layer that it stands beside.
      adapters: The rank and scale of the adapter.
      dtypes: The dtypes of the two `nn.Dense`.

    Returns:
      The change of the output.

    Examples:
      >>> class Change(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      ...         return low_rank_change(x, 3, name="up", adapters=adapters)
      >>> Change().init_with_output(jax.random.key(0), jax.numpy.ones((1, 5)))[0]
      Array([[0., 0., 0.]], dtype=...)
    """
    layer = functools.partial(nn.Dense, use_bias=False, **dtypes)
    # PyTorch's `kaiming_uniform_(a=sqrt(5))`: variance 1 / (3 fan_in).
    spread = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    inner = layer(adapters.rank, kernel_init=spread, name=f"{name}_lora_a")(x)
    zeros = nn.initializers.zeros
    return adapters.scale * layer(features, kernel_init=zeros, name=f"{name}_lora_b")(
        inner
    )


def is_adapter(params: Any) -> Any:
    """Which parameters are adapters: the `where=` of steps and kernels.

    Args:
      params: Parameters of a decoder.

    Returns:
      Bools in their structure.

    Examples:
      >>> is_adapter({"up": {"kernel": 1.0}, "up_lora_a": {"kernel": 2.0}})
      {'up': {'kernel': False}, 'up_lora_a': {'kernel': True}}
    """

    def test(path: Sequence[Any], _: Any) -> bool:
        layer = str(getattr(path[-2], "key", "")) if len(path) > 1 else ""
        return layer.endswith(("_lora_a", "_lora_b"))

    return jax.tree_util.tree_map_with_path(test, params)
