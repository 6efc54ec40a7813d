r"""LoRA: low-rank adapters beside chosen matrices of a decoder.

    y = W x + s B A x,    s = alpha / rank    (rank-stabilized: alpha / sqrt(rank))

`A` and `B` are Linen layers like any other, `NAME_lora_a` and `NAME_lora_b` beside the
matrix `NAME`, so that steps, parts and exact kernels hold for them without further ado.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "TOGETHER",
    "Adapter",
    "LowRank",
    "OtherAdapter",
    "Target",
    "adapted_dense",
    "adapted_together",
    "is_adapter",
]

Target = Literal["qkv", "query", "key", "value", "out", "gate_up", "gate", "up", "down"]

#: The matrices that share one adapter, side by side in this order.
TOGETHER: Mapping[str, tuple[Target, ...]] = {
    "qkv": ("query", "key", "value"),
    "gate_up": ("gate", "up"),
}


class Adapter(NamedTuple):
    """What an adapter of one matrix is.

    Attributes:
      rank: The number of columns of `A` and rows of `B`.
      scale: The factor of its output.
    """

    rank: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class OtherAdapter:
    """The adapter of one matrix that is unlike the rest.

    Attributes:
      layer: The block that the matrix is in.
      target: The matrix.
      rank: The rank of the adapter; 0 for none.
      alpha: The scale before it is divided by the rank, or its root.

    Examples:
      >>> OtherAdapter(layer=0, target="up", rank=4, alpha=8.0).rank
      4
    """

    layer: int
    target: Target
    rank: int
    alpha: float


@dataclass(frozen=True, kw_only=True)
class LowRank:
    r"""Which matrices have an adapter, and of what rank.

    Attributes:
      rank: The number of columns of `A` and rows of `B`.
      alpha: The scale: the adapter's output is multiplied by `alpha / rank`.
      targets: Some of `query`, `key`, `value`, `out`, `gate`, `up`, `down`; or `qkv`,
        one adapter for query, key and value together, which share its `A`: what PEFT
        does where a model stores the three as one matrix (GPT-2, GPT-NeoX, Phi-3); and
        likewise `gate_up` (Phi-3).
      layers: The blocks that have them; None for all.
      rank_stabilized: Whether the scale is `alpha / sqrt(rank)` (rsLoRA), under which
        the size of what is learned does not depend on the rank.
      others: The adapters of single matrices of another rank or scale, or none.

    Raises:
      ValueError: Where the settings make no sense.

    References:
      Hu et al., `LoRA <https://arxiv.org/abs/2106.09685>`_, 2021. Kalajdzievski,
      `A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA
      <https://arxiv.org/abs/2312.03732>`_, 2023.

    Examples:
      >>> adapters = LowRank(rank=8, alpha=16.0, targets=("query", "value"))
      >>> adapters.at(0)["query"]
      Adapter(rank=8, scale=2.0)
    """

    rank: int
    alpha: float
    targets: tuple[Target, ...]
    layers: tuple[int, ...] | None = None
    rank_stabilized: bool = False
    others: tuple[OtherAdapter, ...] = ()

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
        for shared, parts in TOGETHER.items():
            alone = set(self.targets) & set(parts)
            if shared in self.targets and alone:
                raise ValueError(
                    f"`targets`: {shared} stands for {', '.join(parts[:-1])} and "
                    f"{parts[-1]}; got it and {', '.join(sorted(alone))}."
                )
        self._check_others()

    def _check_others(self) -> None:
        for other in self.others:
            if other.target not in self.targets:
                raise ValueError(
                    f"`others` has {other.target} of layer {other.layer}, which is "
                    f"none of the `targets` {', '.join(self.targets)}."
                )
            if other.rank < 0 or not other.alpha > 0:
                raise ValueError(
                    f"`others`: {other.target} of layer {other.layer} has rank "
                    f"{other.rank} and alpha {other.alpha}; the first must be 0 or "
                    "more, the second positive."
                )
        places = [(other.layer, other.target) for other in self.others]
        if len(set(places)) < len(places):
            raise ValueError("`others` names a matrix twice.")

    @classmethod
    def of(cls, settings: "LowRank | Mapping[str, Any]") -> "LowRank":
        """Itself, or what `settings` (and JSON) made of it.

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
            rank_stabilized=settings.get("rank_stabilized", False),
            others=tuple(OtherAdapter(**other) for other in settings.get("others", ())),
        )

    def settings(self) -> dict[str, Any]:
        """What `of` reads, without what is as it was before it could be told.

        Examples:
          >>> LowRank(rank=2, alpha=4.0, targets=("up",)).settings()
          {'rank': 2, 'alpha': 4.0, 'targets': ('up',), 'layers': None}
        """
        content = asdict(self)
        for name in ("rank_stabilized", "others"):
            if not content[name]:
                del content[name]
        return content

    def at(self, layer: int) -> dict[Target, Adapter]:
        """The adapters of a block, by what they stand beside.

        Args:
          layer: The number of the block.

        Examples:
          >>> LowRank(rank=1, alpha=1.0, targets=("up",), layers=(0,)).at(1)
          {}
        """
        is_chosen = self.layers is None or layer in self.layers
        usual = (self.rank if is_chosen else 0, self.alpha)
        other = {
            one.target: (one.rank, one.alpha)
            for one in self.others
            if one.layer == layer
        }
        found: dict[Target, Adapter] = {}
        for target in self.targets:
            rank, alpha = other.get(target, usual)
            if rank:
                found[target] = Adapter(rank, self._scale(rank, alpha))
        return found

    def _scale(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def adapted_dense(
    x: Float[Array, "*batch width"],
    features: int,
    *,
    name: Target,
    adapters: Mapping[Target, Adapter],
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
      ...         adapters = LowRank(rank=2, alpha=4.0, targets=("up",)).at(0)
      ...         return adapted_dense(x, 3, name="up", adapters=adapters)
      >>> params = Layer().init(jax.random.key(0), jax.numpy.ones((1, 5)))["params"]
      >>> sorted(params)
      ['up', 'up_lora_a', 'up_lora_b']
    """
    y = nn.Dense(features, name=name, **settings)(x)
    dtypes = {key: settings[key] for key in ("dtype", "param_dtype") if key in settings}
    return adapted_together([y], x, name=name, adapters=adapters, **dtypes)[0]


def adapted_together(
    outputs: Sequence[Float[Array, "*batch _"]],
    x: Float[Array, "*batch width"],
    *,
    name: Target,
    adapters: Mapping[Target, Adapter],
    **dtypes: Any,
) -> list[Float[Array, "*batch _"]]:
    r"""Outputs of matrices that read the same, with the adapter that they share.

    It adds `s B A x` to them side by side; to be called in a compact method. Fresh ones
    add zero, as PEFT's: `A` uniform within :math:`1/\sqrt{d}`, `B` zero.

    Args:
      outputs: The outputs of the matrices.
      x: Their input.
      name: The name that the adapter has.
      adapters: The adapters of the block.
      dtypes: The dtypes of its two `nn.Dense`.

    Returns:
      The outputs, changed; as they are where the block has no such adapter.

    Examples:
      >>> class Pair(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         adapters = LowRank(rank=2, alpha=4.0, targets=("gate_up",)).at(0)
      ...         return adapted_together([x, x], x, name="gate_up", adapters=adapters)
      >>> Pair().init_with_output(jax.random.key(0), jax.numpy.ones((1, 2)))[0]
      [Array([[1., 1.]], dtype=...), Array([[1., 1.]], dtype=...)]
    """
    if name not in adapters:
        return list(outputs)
    rank, scale = adapters[name]
    widths = [y.shape[-1] for y in outputs]
    layer = functools.partial(nn.Dense, use_bias=False, **dtypes)
    # PyTorch's `kaiming_uniform_(a=sqrt(5))`: variance 1 / (3 fan_in).
    spread = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    inner = layer(rank, kernel_init=spread, name=f"{name}_lora_a")(x)
    zeros = nn.initializers.zeros
    outer = layer(sum(widths), kernel_init=zeros, name=f"{name}_lora_b")(inner)
    change = scale * outer
    ends = list(itertools.accumulate(widths))[:-1]
    changes = jnp.split(change, ends, axis=-1)
    return [y + dy for y, dy in zip(outputs, changes, strict=True)]


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
